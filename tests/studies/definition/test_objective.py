"""Objectives, constraints and the fingerprint of a study."""

import json
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from ppo_lab.config.study import Aggregate, StudyConfig
from ppo_lab.runner.run import run_in_folder
from ppo_lab.studies.definition.objective import (
    aggregate_seeds,
    check_measured,
    forecast_limit_gib,
    is_forecast,
    is_measured,
    parse_constraints,
    parse_objectives,
    quantity,
)
from ppo_lab.studies.definition.plan import Plan, differences
from ppo_lab.studies.definition.space import read_space
from ppo_lab.utils.errors import ConfigError
from tests.helpers.spaces import make_base
from tests.helpers.trainers import config as config_of

SUMMARY = {
    "final_return": 480.0,
    "env_steps_per_s": 10_000,
    "collapsed": True,
    "best_return": None,
    "memory": {
        "measured": {"reserved_gib": 2.5, "host_gib": 1.0},
        "forecast": {"total_gib": 3.0},
    },
    "time": {"update_s": 3.5},
}


def objectives(key="final_return", direction=None, aggregate=Aggregate.mean, num_seeds=3):
    return parse_objectives(key, direction, aggregate, num_seeds)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("final_return", 480.0),
        ("env_steps_per_s", 10_000.0),
        ("time.update_s", 3.5),
        ("collapsed", None),  # a truth, not a number
        ("best_return", None),
        ("no.such.key", None),
    ],
)
def test_a_quantity_is_a_number_of_the_summary(key, value):
    assert quantity(SUMMARY, key) == value


def test_a_quantity_that_is_not_finite_is_none():
    assert quantity({"final_return": float("nan")}, "final_return") is None


@pytest.mark.parametrize(
    ("short", "value"), [("peak_vram_gib", 2.5), ("peak_host_gib", 1.0), ("forecast_vram_gib", 3.0)]
)
def test_a_short_name_is_its_place_in_the_summary_and_smaller_is_better(short, value):
    assert quantity(SUMMARY, short) == value
    assert objectives(short)[0].direction == "minimize"
    assert is_forecast(short) is (short == "forecast_vram_gib")
    assert is_measured(short) is (short != "forecast_vram_gib")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("env_steps_per_s", True), ("wall_time_s", True), ("memory.measured.host_gib", True),
        ("memory.ledger.peak_gib", True), ("time.update_s", True), ("pcie.h2d_bytes", True),
        ("perf.kernel_busy_frac", True), ("final_return", False), ("memory.forecast.x", False),
        ("memory.strategy", False),
    ],
)  # fmt: skip
def test_what_a_process_measures_no_lane_of_a_stack_has(key, expected):
    assert is_measured(key) is expected


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end():
    # Of 8: sorted 0 1 2 3 4 5 6 100, without the lowest and highest two: (2 + 3 + 4 + 5) / 4.
    assert aggregate_seeds([100, 0, 1, 2, 3, 4, 5, 6], Aggregate.iqm) == 3.5
    # A quarter of 5 rounded down is 1: (1 + 2 + 3) / 3.
    assert aggregate_seeds([1, 2, 3, 100, 0], Aggregate.iqm) == 2.0
    assert aggregate_seeds([0.0, 2.0, 4.0, 90.0], Aggregate.iqm) == 3.0
    assert aggregate_seeds([0.0, 3.0, 90.0], Aggregate.iqm) == 31.0
    assert aggregate_seeds([1, 2, 6], Aggregate.mean) == 3.0


def test_a_trials_value_is_over_all_its_seeds_or_none():
    (objective,) = objectives()
    assert objective.value([{"final_return": 1.0}, {"final_return": 2.0}]) == 1.5
    assert objective.value([{"final_return": 1.0}, {"final_return": None}]) is None
    assert objective.value([]) is None


def test_a_direction_left_out_is_the_usual_one():
    keys = ["wall_time_s", "env_steps_per_s", "final_return", "time.update_s"]
    ways = [objective.direction for objective in objectives(keys)]
    assert ways == ["minimize", "maximize", "maximize", "maximize"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"key": ["final_return", "final_return"]}, "each quantity once"),
        ({"key": "final return"}, "no number of a run's summary.json; did you mean final_return?"),
        ({"key": "env_step_per_s"}, "did you mean env_steps_per_s?"),
        ({"key": "time.updates_s"}, "did you mean time.update_s?"),
        ({"key": "seed"}, "such as final_return"),
        ({"key": "collapsed"}, "no number"),
        ({"key": []}, "a name or a list"),
        ({"key": ["final_return", 3]}, "a name or a list"),
        ({"direction": "up"}, "maximize or minimize"),
        ({"direction": [3]}, "a name or a list"),
        ({"direction": ["maximize", "minimize"]}, "one for each of 1 objectives"),
        ({"aggregate": Aggregate.iqm}, "study.num_seeds=4"),
    ],
)
def test_an_objective_that_means_nothing_is_refused(arguments, reason):
    with pytest.raises(ConfigError) as refused:
        objectives(**arguments)
    assert reason in str(refused.value)
    (changed,) = arguments
    assert refused.value.key == f"study.{changed.replace('key', 'objective')}"


def test_four_seeds_have_an_interquartile_mean():
    (objective,) = objectives(aggregate=Aggregate.iqm, num_seeds=4)
    assert objective.aggregate is Aggregate.iqm


def test_a_constraint_is_broken_by_its_worst_seed():
    (vram, speed) = parse_constraints(["peak_vram_gib <= 2", "env_steps_per_s>=1e4"])
    assert vram.text == "peak_vram_gib<=2"
    light = {"memory": {"measured": {"reserved_gib": 1.5}}}
    assert vram.violation([light, SUMMARY]) == 0.5  # 2.5 - 2
    assert vram.violation([light]) == -0.5
    assert speed.violation([SUMMARY]) == 0.0  # just kept
    assert speed.violation([{"env_steps_per_s": 9_000}]) == 1_000.0
    assert vram.violation([SUMMARY, {}]) is None


@pytest.mark.parametrize(
    "text", ["peak_vram_gib < 8", "8 >= peak_vram_gib", "peak_vram_gib <= much", "peak_vram_gib",
             "wall_time_s <= nan", "wall_time_s <= inf", "wall_time_s<<3", ""]
)  # fmt: skip
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(ConfigError, match=r"study.constraints=.*: must be a limit such as"):
        parse_constraints([text])


def test_a_limit_on_what_no_summary_has_is_refused():
    line = r"study.constraints=peek_vram_gib <= 8: .*did you mean peak_vram_gib\?"
    with pytest.raises(ConfigError, match=line):
        parse_constraints(["peek_vram_gib <= 8"])


def numbers_of(section, prefix=""):
    """Yield the dotted keys of all numbers in a summary."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from numbers_of(value, f"{prefix}{name}.")
        elif quantity(section, name) is not None:
            yield prefix + name


@pytest.mark.parametrize("memory", ["shared_trunk", "offloaded_optimizer"])
def test_every_number_of_a_profiled_runs_summary_may_be_an_objective(memory, tmp_path):
    overrides = (f"memory={memory}", "profile=always", "total_steps=2048", "network=tiny")
    config = make_base(*overrides, "tracking=local", "tracking.terminal=none").config()
    summary = run_in_folder(config, tmp_path, overrides=[])
    keys = set(numbers_of(summary)) - {"seed"}
    assert {"time.update_s", "memory.forecast.total_gib", "memory.ledger.peak_gib"} <= keys
    for key in keys:
        if not key.startswith(("machine.", "versions.", "git.")):
            objectives(key)


@pytest.mark.parametrize(
    ("env", "quality"), [("text", "grammatical_frac"), ("arithmetic", "exact_frac")]
)
def test_every_number_of_a_run_on_texts_may_be_an_objective(env, quality, tmp_path):
    sizes = ("network=gpt_tiny", "network.width=16", "network.depth=1", "network.num_heads=2")
    words = (f"env={env}", *sizes, "env.kl_coef=0.1", "env.pretrain_steps=0", "total_steps=100")
    run = config_of(*words, "num_envs=8", "profile=always", "tracking.terminal=none")
    summary = run_in_folder(run, tmp_path, overrides=[])
    keys = set(numbers_of(summary)) - {"seed"}
    assert {"text.kl", "text.reward_with_kl", f"text.{quality}", "time.evaluation_s"} <= keys
    for key in keys:
        if not key.startswith(("machine.", "versions.", "git.")):
            objectives(key)


BY_PHASE = ["build", "compile", "env", "rollout", "advantages", "update", "diagnostics", "record"]
PEAK = [
    "peak_gib", "host_pinned_gib", "host_pageable_gib", "categories_gib.workspace",
    "categories_gib.weights", "categories_gib.gradients", "categories_gib.optimizer",
    "categories_gib.activations", "categories_gib.rollout", "categories_gib.environment",
    "networks_gib.weights_actor", "networks_gib.gradients_critic", "networks_gib.optimizer_trunk",
    *(f"phases_gib.{phase}" for phase in BY_PHASE),
]  # fmt: skip
PARTS = {
    "num_parameters": ["actor", "critic", "trunk"],
    "stack": ["num_lanes", "lane", "busy_frac"],
    "time": [f"{phase}_s" for phase in BY_PHASE],
    "memory.measured": ["host_gib", "allocated_gib", "reserved_gib",
                        *(f"phases_gib.{phase}" for phase in BY_PHASE)],
    "memory.ledger": PEAK,
    "memory.forecast": [*PEAK, "workspace_gib", "context_gib", "allocated_gib", "total_gib",
                        "h2d_bytes_per_iteration", "d2h_bytes_per_iteration"],
    "pcie": ["pageable_bytes", "h2d_bytes", "h2d_limit_gb_per_s", "h2d_gb_per_s",
             "h2d_limit_frac", "d2h_bytes", "d2h_limit_gb_per_s", "d2h_gb_per_s",
             "d2h_limit_frac"],
    "perf": ["kernel_busy_frac", "exposed_copy_frac", "idle_no_copy_frac", "window_s"],
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_each_number_of_a_part_of_a_summary_may_be_an_objective_and_no_other(part):
    for name in PARTS[part]:
        objectives(f"{part}.{name}")
    with pytest.raises(ConfigError, match="no number"):
        objectives(f"{part}.x")


def test_the_numbers_of_a_summary_itself_may_be_objectives():
    keys = ["final_return", "best_return", "auc_return", "env_steps", "num_episodes"]
    keys += ["env_steps_per_s", "wall_time_s", "epsilon"]
    assert [objective.key for objective in objectives(keys)] == keys


def test_one_limit_twice_is_refused():
    with pytest.raises(ConfigError, match=r"study.constraints=.*: must name each limit once"):
        parse_constraints(["wall_time_s <= 1", "wall_time_s<=1"])


def test_the_forecasts_limit_is_the_lowest_upper_one_by_either_name():
    def limit(*texts):
        return forecast_limit_gib(parse_constraints(texts))

    assert limit() is None
    assert limit("peak_vram_gib <= 1", "forecast_vram_gib >= 2") is None
    assert limit("forecast_vram_gib <= 8") == 8.0
    both = ("forecast_vram_gib <= 8", "memory.forecast.total_gib <= 6", "forecast_vram_gib >= 4")
    assert limit(*both, "final_return <= 5") == 6.0


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("peak_vram_gib", "CUDA devices only"),
        ("memory.ledger.peak_gib", "profile=always"),
        ("text.kl", "texts only"),
    ],
)
def test_a_quantity_that_no_summary_of_the_study_has_is_refused(key, why):
    config = config_of("profile=never", "device=cpu")
    check_measured(objectives("forecast_vram_gib"), [], config)
    with pytest.raises(ConfigError, match=rf"study.constraints={key}: .*{why}"):
        check_measured(objectives(), parse_constraints([f"{key} <= 8"]), config)
    with pytest.raises(ConfigError, match=rf"study.objective={key}: .*{why}"):
        check_measured(objectives(key), [], config)


def plan_with(
    *fixed, space=None, when=None, objective="final_return", num_seeds=3, allow_change=False
):
    base = make_base("network=tiny", *fixed)
    texts = space or {"epsilon": "interval(0.05, 0.5)"}
    return Plan(
        study=StudyConfig(num_seeds=num_seeds, num_reports=1, allow_change=allow_change),
        name="clip",
        folder=Path("s"),
        url=make_url("sqlite://"),
        base=base,
        config=base.config(),
        space=read_space(texts, when or {}, base),
        starts=(),
        objectives=objectives(objective),
        constraints=parse_constraints(["wall_time_s <= 60"]),
        overrides=(),
    )


def fingerprint_of(*fixed, **settings):
    return plan_with(*fixed, **settings).fingerprint


def test_a_fingerprint_survives_a_storage_and_does_not_depend_on_where_it_runs():
    first = fingerprint_of()
    assert json.loads(json.dumps(first)) == first
    elsewhere = fingerprint_of("num_threads=1", "tracking=local", "device=cpu", "name=other",
                               "checkpoint.every_s=5", "env.timeout_s=7")  # fmt: skip
    assert elsewhere == first
    respaced = fingerprint_of(space={"epsilon": "interval(0.05,0.5)"})
    assert respaced == first
    plan_with("num_threads=1").refuse_change(first)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"space": {"epsilon": "interval(0.05, 0.4)"}},
         "space.epsilon: interval(0.05,0.5) -> interval(0.05,0.4)"),
        ({"space": {"epsilon": "interval(0.05, 0.5)", "lr": "interval(1e-4, 1e-3)"}},
         "space.lr: (none) -> interval(1e-4,1e-3)"),
        ({"objective": "best_return"},
         'objectives: ["maximize final_return"] -> ["maximize best_return"]'),
        ({"num_seeds": 5}, "num_seeds: 3 -> 5"),
    ],
)  # fmt: skip
def test_a_change_is_refused_with_its_lines_unless_it_is_allowed(change, line):
    first, changed = fingerprint_of(), plan_with(**change)
    assert differences(first, changed.fingerprint) == [line]
    with pytest.raises(ConfigError) as refused:
        changed.refuse_change(first)
    assert refused.value.key == "study.name"
    assert line in str(refused.value)
    assert "study.allow_change=true" in str(refused.value)
    plan_with(**change, allow_change=True).refuse_change(first)


def test_a_changed_base_run_is_a_change():
    lines = differences(fingerprint_of(), fingerprint_of("gamma=0.9"))
    assert lines == ["run.gamma: 0.99 -> 0.9"]
    lines = differences(fingerprint_of(), fingerprint_of("checkpoint.boundary_steps=512"))
    assert lines == ["run.checkpoint.boundary_steps: (none) -> 512"]


def test_a_changed_condition_is_a_change():
    texts = {"memory": "choice(co_resident, shared_trunk)", "lr": "interval(1e-4, 1e-3)"}
    always = fingerprint_of(space=texts)
    sometimes = fingerprint_of(space=texts, when={"lr": "memory=shared_trunk"})
    assert differences(always, sometimes) == ['when.lr: (none) -> ["memory=shared_trunk"]',
                                              "when: {} -> (none)"][::-1]  # fmt: skip


def test_a_long_list_of_changes_is_cut():
    changed = plan_with("env=halfcheetah", "gamma=0.9", "seed=7")
    with pytest.raises(ConfigError, match=r"and \d+ more"):
        changed.refuse_change(fingerprint_of())


def test_returns_of_evaluations_need_evaluations():
    best = objectives("best_eval_return")
    assert best[0].direction == "maximize"
    check_measured(best, [], config_of("eval_every=10"))
    with pytest.raises(ConfigError, match="is known of evaluated policies: add eval_every=10"):
        check_measured(best, [], config_of())
