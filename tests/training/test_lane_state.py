"""A run that goes on from a lane's state equals one that was never interrupted, bit by bit."""

import dataclasses

import pytest
import torch

from ppo_lab.config.choices import Compile, Schedule
from ppo_lab.config.checkpoint import CheckpointConfig
from ppo_lab.memory import STRATEGIES
from ppo_lab.training.checkpoint import LaneState
from ppo_lab.training.trainer import Trainer
from tests.helpers import clock_env  # noqa: F401 - registers Clock-v0
from tests.helpers.trainers import config, weights

SIZES = ("num_envs=4", "num_steps=16", "num_epochs=2", "total_steps=640")  # 64 steps an iteration
NORMALISED = ("env.normalize_observations=true", "env.normalize_rewards=true")
ENVS = {
    "native": ("env=pendulum", "env.max_episode_steps=25"),
    "normalised": ("env=pendulum", "env.max_episode_steps=25", *NORMALISED),
    "gymnasium": ("env=gymnasium", "env.id=CartPole-v1"),
    "unreadable": ("env=gymnasium", "env.id=Clock-v0", *NORMALISED),
}
TIMES = ("time/", "perf/", "charts/SPS")


def base_of(kind, strategy="co_resident"):
    """Return a config whose environments restart after iterations 2, 4, … if they have to."""
    return dataclasses.replace(
        config(*SIZES, *ENVS[kind]),
        checkpoint=CheckpointConfig(boundary_steps=128),
        lr_schedule=Schedule.linear,
        epsilon_schedule=Schedule.linear,
        memory=STRATEGIES[strategy](),
    )


def trained(configs, num_iterations, *, compiles=False):
    """Return a trainer after some iterations, and the list to which it adds its records."""
    records = []
    trainer = Trainer(configs, lambda *record: records.append(record), compiles=compiles)
    for _ in range(num_iterations):
        trainer.iterate()
    return trainer, records


def numbers_in(records):
    """Return what records say, but for measured times; NaN as text, which equals itself."""
    return [
        (lane, record.global_step, record.iteration, str(record.histograms))
        + tuple((n, str(v)) for n, v in record.metrics.items() if not n.startswith(TIMES))
        for lane, record in records
    ]


def check_equal(trainer, records, other, its_records):
    assert numbers_in(records) == numbers_in(its_records)
    for lane in range(len(trainer.configs)):
        assert torch.equal(weights(trainer, lane), weights(other, lane))
        assert trainer.history(lane) == other.history(lane)
    mine, its = (t.optimizer.state_dict() for t in (trainer, other))
    assert all(torch.equal(mine[name], its[name]) for name in its)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ENVS)
def test_a_resumed_run_is_the_undisturbed_run(kind, strategy):
    base = base_of(kind, strategy)
    whole, records = trained([base], 2)
    state = whole.lane_state(0)
    resumed, its_records = trained([base], 0)
    resumed.load_lane_state(0, state)
    assert resumed.lane_iteration(0) == 2
    records.clear()
    for trainer in (whole, resumed):
        for _ in range(3):
            trainer.iterate()
    assert records
    check_equal(whole, records, resumed, its_records)


@pytest.mark.parametrize("kind", ENVS)
def test_lanes_of_different_ages_go_on_in_a_new_stack(kind):
    configs = [dataclasses.replace(base_of(kind), seed=seed) for seed in (1, 2, 3)]
    whole, records = trained(configs, 2)
    whole.replace_lanes({1: dataclasses.replace(configs[1], seed=9, lr=1e-3)})
    for _ in range(2):
        whole.iterate()
    states = [whole.lane_state(lane) for lane in range(3)]
    assert [state.numbers["iteration"] for state in states] == [4, 2, 4]
    resumed, its_records = trained(whole.configs, 1)  # an iteration that none of the lanes keeps
    for lane, state in enumerate(states):
        resumed.load_lane_state(lane, state)
    records.clear(), its_records.clear()
    for trainer in (whole, resumed):
        for _ in range(3):
            trainer.iterate()
    check_equal(whole, records, resumed, its_records)


def parts_of(state):
    """Return the names of a state's parts, some tensors each."""
    return sorted({".".join(name.split(".")[:2]) for name in state.tensors})
