"""Every pruner of conf/study: built from its YAML, run, refused where it is wrong."""

import math

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from ppo_lab.config.study import StudyConfig
from ppo_lab.studies.definition.pruning import ConfidencePruner, report
from ppo_lab.studies.definition.samplers import build_pruner, check_pruner
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.paths import CONF_DIR

PRUNERS = sorted((CONF_DIR / "study" / "pruner").glob("*.yaml"))


def node(path):
    return yaml.safe_load(path.read_text())


def pruner_node(name):
    return node(CONF_DIR / "study" / "pruner" / f"{name}.yaml")


def test_the_pruners_are_all_there():
    assert [path.stem for path in PRUNERS] == [
        "halving", "hyperband", "median", "none", "patient", "percentile"
    ]  # fmt: skip


@pytest.mark.parametrize("path", PRUNERS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("error")
def test_every_pruner_stops_the_hopeless_and_keeps_the_best(path):
    pruner = build_pruner(node(path), confidence=0.95, total_steps=1000)
    study = optuna.create_study(study_name="s", direction="maximize", pruner=pruner)
    pruned = []
    for number in range(12):
        level = 100.0 + number if number < 8 else (0.0 if number < 11 else 1000.0)
        trial = study.ask()
        for step in range(50, 1001, 50):
            # A hopeless trial gets worse: the patient rule waits for that.
            value = level if level > 0 else -float(step)
            report(trial, step, [value - 0.1, value, value + 0.1])
            if trial.should_prune():
                pruned.append(number)
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, level)
    assert 11 not in pruned
    assert (8 in pruned) is (path.stem != "none")


@pytest.mark.parametrize("total_steps", [1000, 2048, 12_345, 99_999, 131_072])
def test_a_rung_is_decided_at_its_own_mark_and_not_at_the_next(total_steps):
    # halving.yaml: at 10, 30 and 90 % of a run, which are the marks 2, 6 and 18 of 20.
    pruner = build_pruner(pruner_node("halving"), confidence=0.95, total_steps=total_steps)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    trial = study.ask()
    rungs_by_mark = {}
    for mark in range(1, 20):
        report(trial, math.ceil(total_steps * mark / 20), [1.0])  # as Plan.marks has them
        trial.should_prune()
        attrs = study._storage.get_trial_system_attrs(trial._trial_id)
        rungs_by_mark[mark] = sum(key.startswith("completed_rung_") for key in attrs)
    assert [rungs_by_mark[mark] for mark in (1, 2, 5, 6, 17, 18)] == [0, 1, 1, 2, 2, 3]


def test_nothing_is_pruned_in_the_warm_up():
    # median.yaml: warmup_frac 0.2 of 1000 steps
    pruner = build_pruner(pruner_node("median"), confidence=0.95, total_steps=1000)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for _ in range(5):
        trial = study.ask()
        for step in (100, 200):
            report(trial, step, [10.0, 10.1])
        study.tell(trial, 10.0)
    trial = study.ask()
    report(trial, 100, [0.0, 0.1])
    assert not trial.should_prune()
    report(trial, 200, [0.0, 0.1])
    assert trial.should_prune()


@pytest.mark.parametrize("path", PRUNERS, ids=lambda path: path.stem)
def test_several_objectives_allow_no_pruner_but_none(path):
    def check():
        check_pruner(StudyConfig(pruner=node(path)), total_steps=1000, num_objectives=2)

    if path.stem == "none":
        check()
    else:
        with pytest.raises(ConfigError, match="prunes by one objective only"):
            check()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"_target_": "optuna.samplers.TPESampler"}, "must be a class of optuna.pruners"),
        ({"_target_": "optuna.pruners.MedianPrunner"}, "did you mean optuna.pruners.MedianPruner"),
        ({"_target_": "optuna.pruners.WilcoxonPruner"}, "3 seeds"),
        ({"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": -1}, "negative"),
        ({"_target_": "optuna.pruners.PatientPruner", "patience": 1,
          "wrapped_pruner": {"_target_": "os.system"}}, "must be a class of optuna.pruners"),
    ],
)  # fmt: skip
def test_only_optunas_own_pruners_are_built(wrong, reason):
    with pytest.raises(ConfigError) as refused:
        check_pruner(StudyConfig(pruner=wrong), total_steps=1000, num_objectives=1)
    assert reason in str(refused.value)


@pytest.mark.parametrize("confidence", [0.4, 1.0])
def test_a_confidence_that_is_none_is_refused(confidence):
    study = StudyConfig(pruner=pruner_node("median"), prune_confidence=confidence)
    with pytest.raises(ConfigError, match=r"at least 0.5 and below 1"):
        check_pruner(study, total_steps=10, num_objectives=1)


def test_the_bound_is_shown_inside_patience_and_nowhere_without_comparison():
    patient = build_pruner(pruner_node("patient"), confidence=0.95, total_steps=1000)
    assert isinstance(patient, optuna.pruners.PatientPruner)
    assert isinstance(patient._wrapped_pruner, ConfidencePruner)
    none = build_pruner(pruner_node("none"), confidence=0.95, total_steps=1000)
    assert isinstance(none, optuna.pruners.NopPruner)
