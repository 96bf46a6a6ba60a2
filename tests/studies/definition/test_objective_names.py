"""Which numbers of a summary have short names, directions and conditions; who is told what."""

import pytest

from ppo_lab.config.study import Aggregate
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
from ppo_lab.utils.errors import ConfigError

SUMMARY = {
    "memory": {
        "measured": {"reserved_gib": 1.0, "host_gib": 2.0}, "forecast": {"total_gib": 3.0},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("short", "value"), [("peak_vram_gib", 1.0), ("peak_host_gib", 2.0), ("forecast_vram_gib", 3.0)]
)
def test_a_short_name_is_its_place_in_the_summary_and_smaller_is_better(short, value):
    assert quantity(SUMMARY, short) == value
    (objective,) = parse_objectives(short, None, Aggregate.mean, 1)
    assert objective.direction == "minimize"
    assert is_forecast(short) is (short == "forecast_vram_gib")
    assert is_measured(short) is (short != "forecast_vram_gib")


def test_time_is_better_short_and_what_is_not_listed_is_better_large():
    keys = ["wall_time_s", "env_steps_per_s", "final_return", "time.update_s"]
    found = [o.direction for o in parse_objectives(keys, None, Aggregate.mean, 1)]
    assert found == ["minimize", "maximize", "maximize", "maximize"]


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


def test_the_forecasts_limit_is_the_lowest_upper_one_by_either_name():
    def limit(*texts):
        return forecast_limit_gib(parse_constraints(texts))

    assert limit() is None
    assert limit("peak_vram_gib <= 1", "forecast_vram_gib >= 2") is None
    assert limit("forecast_vram_gib <= 8") == 8.0
    both = ("forecast_vram_gib <= 8", "memory.forecast.total_gib <= 6", "forecast_vram_gib >= 4")
    assert limit(*both, "final_return <= 5") == 6.0


def test_a_quarter_of_four_is_one_and_of_three_none():
    assert aggregate_seeds([0.0, 2.0, 4.0, 90.0], Aggregate.iqm) == 3.0
    assert aggregate_seeds([0.0, 3.0, 90.0], Aggregate.iqm) == 31.0
    (objective,) = parse_objectives("wall_time_s", "minimize", Aggregate.iqm, 4)
    assert (objective.key, objective.direction) == ("wall_time_s", "minimize")


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (lambda: parse_objectives(["a", "a"], None, Aggregate.mean, 1), "study.objective"),
        (lambda: parse_objectives("a b", None, Aggregate.mean, 1), "study.objective"),
        (lambda: parse_objectives(["a", 3], None, Aggregate.mean, 1), "study.objective"),
        (
            lambda: parse_objectives(
                ["final_return", "wall_time_s"], "maximize", Aggregate.mean, 1
            ),
            "study.direction",
        ),
        (lambda: parse_objectives("final_return", [3], Aggregate.mean, 1), "study.direction"),
        (lambda: parse_objectives("final_return", "up", Aggregate.mean, 1), "study.direction"),
        (lambda: parse_objectives("final_return", None, Aggregate.iqm, 3), "study.aggregate"),
        (lambda: parse_constraints(["a <= 1", "a<=1"]), "study.constraints"),
        (lambda: parse_constraints(["a < 1"]), "study.constraints"),
        (
            lambda: check_measured([], parse_constraints(["peak_vram_gib <= 1"]), is_cuda=False),
            "study.constraints",
        ),
    ],
)
def test_a_refusal_names_the_key_to_change(call, key):
    with pytest.raises(ConfigError) as refused:
        call()
    assert refused.value.key == key
