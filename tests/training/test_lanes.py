"""A lane's numbers are those of its config run alone; what may differ in a stack and what not."""

import dataclasses
import math

import pytest
import torch

from ppo_lab.config.lanes import LANE_KEYS, check_stack
from ppo_lab.config.run import Config, Schedule
from ppo_lab.ppo.update import AdvantageNormalization
from ppo_lab.training.lane_values import LaneValues, schedule_metrics
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.errors import ConfigError
from tests.helpers.trainers import (
    CPU,
    PENDULUM,
    TWENTY_STEPS,
    config,
    lanes_of,
    largest_difference,
    record_rows,
    train_to_end,
    weights,
)

# Four lanes that agree in no number a lane may have to itself.
FOUR = (
    {"seed": 1, "epsilon": 0.2, "lr": 1e-3, "gamma": 0.99},
    {"seed": 2, "epsilon": None, "lr": 3e-3, "gamma": 0.9, "max_grad_norm": None},
    {"seed": 3, "epsilon": 0.05, "lr": 1e-2, "target_kl": 0.002, "gae_lambda": 0.5},
    {
        "seed": 2**40,
        "total_steps": 50_000,
        "epsilon": 0.1,
        "epsilon_high": 0.3,
        "dual_clip": 3.0,
        "value_epsilon": 0.2,
        "entropy_coef": 0.01,
        "value_coef": 0.25,
        "lr_schedule": Schedule.linear,
        "epsilon_schedule": Schedule.linear,
        "max_grad_norm": 0.1,
        "gae_lambda_policy": 0.8,
        "gae_lambda_value": 1.0,
        "policy_start_iteration": 1,
    },
)
STACKABLE = ("co_resident", "shared_trunk")


@pytest.mark.parametrize("strategy", STACKABLE)
@pytest.mark.parametrize("env", [(), PENDULUM], ids=["discrete", "continuous"])
def test_a_lane_equals_itself_alone_over_the_first_free_running_iteration(strategy, env):
    configs = lanes_of(config(*TWENTY_STEPS, f"memory={strategy}", *env), *FOUR)
    one_iteration = [dataclasses.replace(c, total_steps=c.num_rows) for c in configs]
    records = {}
    stack = Trainer(one_iteration, records.__setitem__)
    results = train_to_end(stack)
    num_steps = [records[lane].metrics["ppo/gradient_steps"] for lane in range(4)]
    assert num_steps.pop(2) < 20  # target_kl really stopped one lane
    assert num_steps == [20, 20, 20]
    for lane, lane_config in enumerate(one_iteration):
        mine = {}
        alone = Trainer([lane_config], mine.__setitem__)
        (result,) = train_to_end(alone)
        assert largest_difference(weights(stack, lane), weights(alone)) < 1e-6
        assert results[lane].returns == pytest.approx(result.returns, rel=1e-6)
        names = {n for n in mine[0].metrics if not n.startswith(("time/", "perf/", "charts/SPS"))}
        assert names <= records[lane].metrics.keys()
        for name in names:
            expected = pytest.approx(mine[0].metrics[name], rel=1e-3, abs=1e-5)
            assert records[lane].metrics[name] == expected, name


def test_equal_configs_in_different_places_of_a_stack_are_equal_bit_for_bit():
    stack = Trainer(lanes_of(config(*TWENTY_STEPS), {}, {"seed": 9}, {}))
    stack.update(record_rows(stack))
    assert torch.equal(weights(stack, 0), weights(stack, 2))
    assert not torch.equal(weights(stack, 0), weights(stack, 1))


@pytest.mark.parametrize(
    "change",
    [
        {"num_envs": 4},
        {"num_steps": 64},
        {"num_epochs": 3},
        {"num_minibatches": 2},
        {"adam_eps": 1e-8},
        {"bootstrap_truncated": False},
        {"advantage_normalization": AdvantageNormalization.none},
        {"network": config("network=small").network},
        {"env": config("env=acrobot").env},
        {"memory": config("memory=shared_trunk").memory},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_program_is_made_of_must_be_equal_in_a_stack(change):
    (key,) = change
    with pytest.raises(ConfigError, match=f"^{key}=.*must equal") as refusal:
        check_stack(lanes_of(config(), {}, change))
    assert refusal.value.key == key


def test_every_lane_key_may_differ_in_a_stack():
    check_stack(lanes_of(config(), *FOUR))
    fields = {field.name for field in dataclasses.fields(Config)}
    assert fields >= LANE_KEYS
    used = {key for change in FOUR for key in change}
    assert used >= LANE_KEYS - {"name", "tracking"}  # the stack above tries every one


def coefficients(iteration, *changes, total_steps=10_240):
    base = dataclasses.replace(config(), total_steps=total_steps)  # 10 iterations of 1024
    configs = lanes_of(base, *changes)
    assert configs[0].num_iterations == 10
    return LaneValues(configs, CPU, torch.float64).hyperparameters(iteration)


def test_annealing_starts_at_the_full_value_and_ends_at_an_nth():
    # CleanRL's: 1 - iteration / n, so with n = 10 the last update (iteration 9) runs at a tenth.
    linear = {"lr": 1e-3, "lr_schedule": Schedule.linear, "epsilon_schedule": Schedule.linear}
    for iteration, share in ((0, 1.0), (5, 0.5), (9, 0.1)):
        found = coefficients(iteration, linear, {"lr": 1e-3})
        assert found.lr.tolist() == pytest.approx([1e-3 * share, 1e-3])
        assert found.clip.low.tolist() == pytest.approx([0.2 * share, 0.2])
        assert found.clip.high.tolist() == pytest.approx([0.2 * share, 0.2])


def test_an_asymmetric_clip_anneals_both_sides():
    change = {"epsilon": 0.2, "epsilon_high": 0.4, "epsilon_schedule": Schedule.linear}
    clip = coefficients(5, change).clip
    assert (clip.low.item(), clip.high.item()) == pytest.approx((0.1, 0.2))


def test_epsilon_none_stays_infinite_under_annealing():
    for iteration in (0, 9):
        change = {"epsilon": None, "epsilon_schedule": Schedule.linear}
        clip = coefficients(iteration, change, {}).clip
        assert clip.low[0] == clip.high[0] == math.inf


def test_what_no_lane_uses_is_absent_and_what_one_lane_uses_is_infinite_in_the_others():
    none = coefficients(0, {}, {})
    assert none.target_kl is none.dual_clip is none.value_epsilon is None
    some = coefficients(0, {"target_kl": 0.01, "max_grad_norm": None}, {"dual_clip": 3.0})
    assert some.target_kl.tolist() == [0.01, math.inf]
    assert some.dual_clip.tolist() == [math.inf, 3.0]
    assert some.max_grad_norm.tolist() == [math.inf, 0.5]
    assert some.value_epsilon is None


def test_scheduled_metrics_say_what_the_coefficients_are():
    change = {"lr": 1e-3, "lr_schedule": Schedule.linear, "epsilon_schedule": Schedule.linear}
    base = dataclasses.replace(config(), total_steps=10_240)
    configs = lanes_of(base, change, {"epsilon": None})
    lanes = LaneValues(configs, CPU, torch.float64)
    for iteration in range(10):
        found = lanes.hyperparameters(iteration)
        metrics = [schedule_metrics(c, iteration / 10) for c in configs]
        assert [m["charts/learning_rate"] for m in metrics] == pytest.approx(found.lr.tolist())
        assert metrics[0]["ppo/epsilon"] == pytest.approx(found.clip.low[0].item())
        assert "ppo/epsilon" not in metrics[1]  # there is no clip to report
