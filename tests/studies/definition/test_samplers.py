"""Every sampler of conf/study: built from its YAML, run, refused where it is wrong."""

import importlib.util

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from ppo_lab.config.study import StudyConfig
from ppo_lab.studies.definition import samplers
from ppo_lab.studies.definition.samplers import build_sampler, check_sampler, mixed_seed
from ppo_lab.studies.definition.space import read_space
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.paths import CONF_DIR
from tests.helpers.spaces import make_base

SAMPLERS = sorted((CONF_DIR / "study" / "sampler").glob("*.yaml"))


GP = {"_target_": "optuna.samplers.GPSampler"}
OUTSIDE = None


def node(path):
    return yaml.safe_load(path.read_text())


def sampler_node(name):
    return node(CONF_DIR / "study" / "sampler" / f"{name}.yaml")


@pytest.fixture(scope="module")
def base():
    return make_base("network=tiny")


@pytest.fixture(scope="module")
def finite(base):
    texts = {"epsilon": "choice(0.1, 0.2, none)", "num_epochs": "range(1, 5)",
             "gamma": "range(0.9, 1.0, 0.05)"}  # fmt: skip
    return read_space(texts, {}, base)


@pytest.fixture(scope="module")
def mixed(base):
    texts = {"lr": "tag(log, interval(1e-5, 1e-3))", "num_epochs": "interval(1, 8)",
             "memory": "choice(co_resident, shared_trunk)"}  # fmt: skip
    return read_space(texts, {}, base)


def build(node, space, worker="w", num_trials=0, seed=1):
    return build_sampler(StudyConfig(sampler=node, seed=seed), space, worker, num_trials)


def check(node, space, num_trials, starts=(OUTSIDE,), num_objectives=1):
    check_sampler(StudyConfig(sampler=node, num_trials=num_trials), space, starts, num_objectives)


def run(sampler, space, num_trials):
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for _ in range(num_trials):
        trial = study.ask()
        params = space.sample(trial)
        study.tell(trial, float(params["num_epochs"]))
    return study


@pytest.mark.parametrize(
    "path", sorted((CONF_DIR / "study").glob("*r/*.yaml")), ids=lambda path: path.stem
)
def test_every_sampler_and_pruner_says_when_to_choose_it(path):
    assert len(path.read_text().splitlines()[0]) > 30
    assert path.read_text().startswith("# ")


def test_the_samplers_are_all_there():
    assert [path.stem for path in SAMPLERS] == [
        "cmaes", "gp", "grid", "nsga2", "qmc", "random", "tpe"
    ]  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("path", SAMPLERS, ids=lambda path: path.stem)
def test_every_sampler_searches_without_a_warning(path, finite, mixed):
    if path.stem == "cmaes" and importlib.util.find_spec("cmaes") is None:
        pytest.skip("the package cmaes is not installed")
    space = finite if path.stem == "grid" else mixed
    num_trials = 13 if path.stem == "gp" else 24  # of which 10 are random; a fit takes a while
    check(node(path), space, 24)
    study = run(build(node(path), space), space, num_trials)
    assert all(trial.state is TrialState.COMPLETE for trial in study.trials)
    assert len({tuple(trial.params.items()) for trial in study.trials}) > num_trials - 4


def test_a_grid_is_walked_once_by_two_workers_and_a_restart(finite):
    # 3 epsilons x 4 epoch counts x 2 gammas = 24 points; trial 0, the defaults, is one of them.
    study = optuna.create_study()
    study.enqueue_trial({"epsilon": 0.2, "num_epochs": 1, "gamma": 0.9})
    seen = []
    for number in range(24):
        study.sampler = build(
            sampler_node("grid"), finite, worker=f"w{number % 2}", num_trials=number
        )
        trial = study.ask()
        seen.append(tuple(finite.sample(trial).values()))
        study.tell(trial, 0.0)  # Optuna's own grid would raise at the last point
    assert seen[0] == (0.2, 1, 0.9)
    assert len(set(seen)) == 24


@pytest.mark.parametrize(
    ("starts", "total"),
    [([OUTSIDE], 25), ([{"epsilon": 0.1, "num_epochs": 1, "gamma": 0.9}] * 2, 25), ([], 24)],
)
def test_a_grid_ends_once_every_point_has_run(finite, starts, total):
    def total_of(name, num_trials):
        study = StudyConfig(sampler=sampler_node(name), num_trials=num_trials)
        return samplers.grid_total(study, finite, starts)

    assert total_of("grid", 50) == total
    assert total_of("grid", 10) == 10
    assert total_of("random", 50) == 50


def test_a_restart_does_not_sample_the_first_trials_again(mixed):
    first = run(build(sampler_node("tpe"), mixed), mixed, 4)
    same = run(build(sampler_node("tpe"), mixed), mixed, 4)
    restarted = run(build(sampler_node("tpe"), mixed, num_trials=4), mixed, 4)
    elsewhere = run(build(sampler_node("tpe"), mixed, worker="v"), mixed, 4)
    params = [[trial.params for trial in study.trials] for study in (first, same)]
    assert params[0] == params[1]
    rates = {
        trial.params["lr"] for study in (first, restarted, elsewhere) for trial in study.trials
    }
    assert len(rates) == 12


def test_the_gaussian_process_is_told_of_pruned_trials(base, monkeypatch):
    # Optuna's own is not, and of a space whose best half runs out of memory it samples that half
    # to the end of the study.
    space = read_space({"gamma": "interval(0, 1)"}, {}, base)
    study = optuna.create_study(direction="maximize", sampler=build(sampler_node("gp"), space))
    told = []

    def remember(self, study, trials, running, search_space):
        told[:] = [(t.params["gamma"], t.values, t.constraints) for t in trials]
        return {"gamma": 0.5}

    monkeypatch.setattr(optuna.samplers.GPSampler, "_sample_relative_impl", remember)
    for number in range(12):
        study.enqueue_trial({"gamma": number / 100})
        trial = study.ask()
        space.sample(trial)
        trial.set_constraint("vram", -float(number))
        if number == 3:  # fell behind: its last value stands, and its limit
            trial.report(0.7, 1)
            study.tell(trial, state=TrialState.PRUNED)
        elif number == 4:  # never ran: the worst value of the others, trial 0's 10
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, 10.0 + number)
    space.sample(study.ask())
    by_gamma = {gamma: (values, limits) for gamma, values, limits in told}
    assert len(by_gamma) == 12
    assert by_gamma[0.03] == ([0.7], {"vram": -3.0})
    assert by_gamma[0.04] == ([10.0], {"vram": -4.0})
    assert by_gamma[0.05] == ([15.0], {"vram": -5.0})


def test_a_trial_that_never_ran_has_the_others_limits_and_no_more(base):
    complete = [optuna.create_trial(value=v) for v in (3.0, 1.0)]
    for trial, violation in zip(complete, (-2.0, 0.5)):
        trial.set_constraint("vram", violation)
    lost = optuna.create_trial(state=TrialState.PRUNED)
    lost.set_constraint("ran", 1.0)
    copied = samplers._as_complete(lost, complete, [optuna.study.StudyDirection.MAXIMIZE])
    assert copied.values == [1.0]
    assert copied.constraints == {"vram": 0.5}
    assert lost.constraints == {"ran": 1.0}


def test_seeds_are_mixed_from_study_worker_and_count():
    seeds = {
        mixed_seed(seed, worker, count)
        for seed in range(3)
        for worker in ("a:1", "a:2", "b:1")
        for count in range(5)
    }
    assert len(seeds) == 45
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_workers_share_one_quasi_random_sequence(mixed):
    study = optuna.create_study()
    alone = run(build(sampler_node("qmc"), mixed), mixed, 9)
    for number in range(9):
        study.sampler = build(
            sampler_node("qmc"), mixed, worker=f"w{number % 2}", num_trials=number
        )
        trial = study.ask()
        mixed.sample(trial)
        study.tell(trial, 0.0)
    assert [t.params for t in study.trials[1:]] == [t.params for t in alone.trials[1:]]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"_target_": "os.system"}, "must be a class of optuna.samplers"),
        ({"_target_": "optuna.samplers.TPESampleer"}, "did you mean optuna.samplers.TPESampler"),
        ({"_target_": "optuna.samplers._base.BaseSampler"}, "must be a class"),
        ({"_target_": "optuna.samplers.BaseSampler"}, "must be a class"),
        ({}, "must be a class"),
        ({"_target_": "optuna.samplers.BruteForceSampler"}, "grid"),
        ({"_target_": "optuna.samplers.TPESampler", "startup": 3}, "startup"),
        ({"_target_": "optuna.samplers.TPESampler", "seed": 3}, "study.seed"),
        ({"_target_": "optuna.samplers.NSGAIISampler", "population_size": 1}, "greater than"),
        ({**GP, "independent_sampler": {"_target_": "os.x"}}, "must be a class of optuna.samplers"),
        # Nested in a list or a mapping, through a module's attribute, and Hydra's own keys.
        ({**GP, "x": {"y": {"_target_": "os.system"}}}, "must be a class of optuna.samplers"),
        ({**GP, "x": [{"_target_": "os.system"}]}, "unexpected keyword argument 'x'"),
        ({**GP, "_args_": [{"_target_": "os.system"}]}, "unexpected keyword argument '_args_'"),
        ({**GP, "independent_sampler": {"_target_": "optuna.samplers._base.abc.ABC"}},
         "must be a class of optuna.samplers"),
        ({**GP, "independent_sampler": {"_target_": "optuna.pruners.NopPruner"}},
         "must be a class of optuna.samplers"),
        ({**GP, "_partial_": True}, "unexpected keyword argument '_partial_'"),
    ],
)  # fmt: skip
def test_only_optunas_own_samplers_are_built(mixed, wrong, reason):
    with pytest.raises(ConfigError) as refused:
        check(wrong, mixed, 10)
    assert reason in str(refused.value)


def test_an_argument_may_itself_be_a_sampler(mixed):
    inner = {"_target_": "optuna.samplers.RandomSampler"}
    sampler = build({"_target_": "optuna.samplers.GPSampler", "independent_sampler": inner}, mixed)
    assert isinstance(sampler._independent_sampler, optuna.samplers.RandomSampler)


@pytest.mark.parametrize(
    ("name", "space", "num_trials", "num_objectives", "reason"),
    [
        ("grid", {"lr": "interval(1e-5, 1e-3)"}, 5, 1, "has no grid"),
        ("grid", {"epsilon": "range(0.1, 0.2, 1e-9)"}, 5, 1, "has 100,000,000 points; at most"),
        ("cmaes", {"lr": "interval(1e-5, 1e-3)"}, 5, 1, "two numbers"),
        ("cmaes", {"lr": "interval(0.1, 1)", "gamma": "interval(0.9, 1)"}, 5, 2, "one objective"),
        ("nsga2", {"lr": "interval(1e-5, 1e-3)"}, 20, 2, "must be below num_trials"),
    ],
)  # fmt: skip
def test_a_sampler_that_does_not_suit_the_study_is_refused(
    base, monkeypatch, name, space, num_trials, num_objectives, reason
):
    monkeypatch.setattr(samplers.importlib.util, "find_spec", lambda name: object())
    searched, starts = read_space(space, {}, base), [OUTSIDE] * 2
    with pytest.raises(ConfigError) as refused:
        check(sampler_node(name), searched, num_trials, starts, num_objectives)
    assert reason in str(refused.value)


def test_a_conditional_space_has_no_grid(base):
    space = read_space(
        {"memory": "choice(co_resident, shared_trunk)", "num_epochs": "range(1, 5)"},
        {"num_epochs": "memory=shared_trunk"},
        base,
    )
    with pytest.raises(ConfigError, match="num_epochs is conditional"):
        check(sampler_node("grid"), space, 4)


def test_a_grid_needs_complete_points_to_start_from(finite):
    part = {"epsilon": 0.1}
    with pytest.raises(ConfigError, match="every key of the space"):
        check(sampler_node("grid"), finite, 4, [OUTSIDE, part])


def test_a_missing_package_is_named_before_the_study(mixed, monkeypatch):
    monkeypatch.setattr(samplers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"ppo_lab\[cmaes\]"):
        check(sampler_node("cmaes"), mixed, 5)
