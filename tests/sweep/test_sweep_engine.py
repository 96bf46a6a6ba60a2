"""Studies from their plan to their files, without training: every sampler, every pruner."""

import csv
import dataclasses
import json
from pathlib import Path

import optuna
import pytest
import yaml
from engine import FormulaExecutor, carried, learn
from study_helpers import plan_of

from ppo_lab.paths import CONF_DIR
from ppo_lab.sweep.parent import Ending

SAMPLERS = [path.stem for path in sorted((CONF_DIR / "study" / "sampler").glob("*.yaml"))]
PRUNERS = [path.stem for path in sorted((CONF_DIR / "study" / "pruner").glob("*.yaml"))]
SPACE = (
    "epsilon=tag(log,interval(0.05,0.5))", "num_epochs=interval(2,12)", "gamma=choice(0.9,0.99)",
    "study.num_marks=5", "tracking.terminal=none",
)  # fmt: skip
GRID = (*SPACE[3:], "epsilon=choice(0.1,0.2,0.3,0.5)", "num_epochs=range(7,11)")
OPTIONS = {
    "cmaes": ("study.sampler.n_startup_trials=4",),
    "gp": ("study.sampler.n_startup_trials=4",),
    "nsga2": ("study.sampler.population_size=4",),
    "tpe": ("study.sampler.n_startup_trials=4",),
}
"""The samplers begin to search within a test's few trials."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Carries a study to its end in a folder of its own; returns its trials."""
    monkeypatch.chdir(tmp_path)

    def run(plan, num_trials, formula=learn):
        study = dataclasses.replace(plan.study, num_trials=num_trials)
        plan = dataclasses.replace(plan, study=study)
        assert carried(plan, FormulaExecutor(formula)) is Ending.complete
        storage = plan.url.render_as_string()
        return optuna.load_study(study_name=plan.name, storage=storage).trials

    return run


def left(name):
    return Path("outputs", "studies", "quick", name)


@pytest.mark.filterwarnings("ignore:Constraints have been set, but CmaEsSampler")
@pytest.mark.filterwarnings("error::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_carries_a_study_to_its_end_and_on(run, name):
    plan = plan_of(*(GRID if name == "grid" else SPACE), *OPTIONS.get(name, ()),
                   "study.num_seeds=2", f"study/sampler={name}",
                   'study.constraints=["env_steps_per_s <= 10000"]')  # fmt: skip
    run(plan, 6)
    trials = run(plan, 10)
    assert [trial.number for trial in trials] == list(range(10))
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    first, then = (
        {tuple(trial.params.items()) for trial in part} for part in (trials[1:6], trials[6:])
    )
    assert not first & then or name == "nsga2"  # whose children may be their parents
    assert len(first) > 3
    rows = list(csv.DictReader(left("trials.csv").open()))
    assert len(rows) == 10
    best = max((row for row in rows if row["outcome"] == "kept"),
               key=lambda row: float(row["final_return"]))  # fmt: skip
    written = yaml.safe_load(left("best.yaml").read_text())
    assert float(best["epsilon"]) == written.get("epsilon", 0.2)  # 0.2 is the task's own
    assert "final_return" in json.loads(left("importance.json").read_text())


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_carries_a_study_to_its_end(run, name):
    plan = plan_of(*SPACE, f"study/pruner={name}", "study/sampler=random", "study.num_marks=10",
                   "study.num_seeds=2", "study.prune_confidence=0.7")  # fmt: skip

    def formula(config, share):
        # Best at once, and worse from then on: the patient rule prunes, too.
        return -abs(config.epsilon - 0.2) - 0.01 * share + 1e-3 * (config.seed % 2)

    trials = run(plan, 12, formula)
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert len(complete) + len(pruned) == 12
    assert complete[0].number == 0  # the defaults, and the best there is
    assert bool(pruned) is (name != "none")
    for trial in pruned:
        reason = trial.user_attrs["outcome"]["reason"]
        assert reason == f"behind other trials after {trial.last_step:,} steps"
