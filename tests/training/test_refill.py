"""A lane that is given another run: it equals that run alone, and its neighbours notice nothing."""

import dataclasses

import pytest
import torch

from ppo_lab.config.run import Schedule
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.errors import ConfigError
from tests.helpers.trainers import (
    PENDULUM,
    TWENTY_STEPS,
    config,
    lanes_of,
    largest_difference,
    state_of,
    train_to_end,
    weights,
)

GYMNASIUM = ("env=gymnasium", "env.id=CartPole-v1", "num_envs=2", "num_steps=64", *TWENTY_STEPS)
NORMALIZED = (*PENDULUM, "env.normalize_observations=true", "env.normalize_rewards=true")
RECURRENT = (
    *("env=cartpole_masked", "network=gru", "network.hidden=8", "num_envs=4", "num_steps=16"),
)
TEXT = (
    *("env=text", "network=gpt_tiny", "network.width=16", "network.num_heads=2", "num_envs=8"),
    *("env.pretrain_steps=0", "network.depth=1", "env.kl_target=1"),
)
BACKENDS = {
    "torch": TWENTY_STEPS,
    "torch, continuous and normalised": NORMALIZED,
    "gymnasium": GYMNASIUM,
    "gymnasium, normalised": (*GYMNASIUM, "env.normalize_observations=true"),
    "recurrent": (*RECURRENT, *TWENTY_STEPS),
    "text": (*TEXT, *TWENTY_STEPS),
}
STACKABLE = ("co_resident", "shared_trunk", "critic_free")
NEW = {
    "seed": 77,
    "epsilon": 0.3,
    "lr": 2e-3,
    "gamma": 0.9,
    "gae_lambda": 0.8,
    "target_kl": 0.1,  # no lane had one before
    "epsilon_schedule": Schedule.linear,
    "total_steps": 8192,
}


def stack_of(*overrides, changes=({"seed": 1}, {"seed": 2, "lr": 1e-2}, {"seed": 3})):
    return Trainer(lanes_of(config(*overrides), *changes))


def refilled(*overrides, num_iterations=2):
    """Return a stack of three whose middle lane began anew after two iterations."""
    trainer = stack_of(*overrides)
    for _ in range(num_iterations):
        trainer.iterate()
    trainer.retire_lane(1)
    trainer.replace_lanes({1: dataclasses.replace(trainer.config, **NEW)})
    return trainer


@pytest.mark.parametrize("strategy", STACKABLE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_refilled_lane_trains_and_records_its_first_iteration_as_it_would_alone(
    backend, strategy
):
    records, own = {}, {}
    trainer = refilled(*BACKENDS[backend], f"memory={strategy}")
    trainer._on_record = records.__setitem__
    alone = Trainer([trainer.configs[1]], own.__setitem__)
    assert torch.equal(weights(trainer, 1), weights(alone))
    trainer.iterate()
    alone.iterate()
    assert own[0].metrics["ppo/gradient_steps"] == 20
    assert largest_difference(weights(trainer, 1), weights(alone)) < 1e-6
    assert (records[1].iteration, records[0].iteration) == (1, 3)
    assert records[1].global_step == own[0].global_step
    assert trainer.history(1).returns == pytest.approx(alone.history(0).returns, rel=1e-6)
    names = {n for n in own[0].metrics if not n.startswith(("time/", "perf/", "charts/SPS"))}
    for name in names:
        expected = pytest.approx(own[0].metrics[name], rel=1e-3, abs=1e-5)
        assert records[1].metrics[name] == expected, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_its_neighbours_are_not_touched(backend):
    """Bit for bit: what they learn next is what they learn beside the lane that goes on."""
    # A target_kl in every lane: else the refill adds operations (an infinite one) to the program.
    base = (*BACKENDS[backend], "target_kl=5")
    goes_on = stack_of(*base)
    for _ in range(4):
        goes_on.iterate()
    trainer = refilled(*base)
    for _ in range(2):
        trainer.iterate()
    for lane in (0, 2):
        assert torch.equal(weights(trainer, lane), weights(goes_on, lane))
        assert trainer.history(lane) == goes_on.history(lane)
    mine, its = trainer.env.state_dict(), goes_on.env.state_dict()
    assert all(torch.equal(mine[key][[0, 2]], its[key][[0, 2]]) for key in its)
    assert not torch.equal(weights(trainer, 1), weights(goes_on, 1))


def test_parameters_moments_and_coefficients_keep_their_storage():
    trainer = stack_of(*TWENTY_STEPS)
    trainer.iterate()

    def addresses():
        held = [*trainer.model.parameters(), *state_of(trainer.optimizer)]
        held += [trainer._lanes.gamma, trainer._lanes.lambda_policy]
        return [tensor.data_ptr() for tensor in held]

    before = addresses()
    trainer.replace_lanes({1: dataclasses.replace(trainer.config, **NEW)})
    assert addresses() == before


def test_a_lane_whose_numbers_were_not_finite_makes_a_good_place_for_another():
    doomed = ({"seed": 1}, {"lr": 1e30}, {"seed": 3})
    trainer = stack_of(*NORMALIZED, changes=doomed)
    trainer.iterate()
    assert trainer.has_ended(1)
    assert weights(trainer, 1).isnan().any()
    trainer.replace_lanes({1: dataclasses.replace(trainer.config, seed=9)})
    assert not trainer.has_ended(1)
    alone = Trainer([trainer.configs[1]])
    trainer.iterate()
    alone.iterate()
    assert largest_difference(weights(trainer, 1), weights(alone)) < 1e-6


def test_each_lane_ends_by_its_own_number_of_steps_and_stays_as_it_was_then():
    changes = ({"total_steps": 1024}, {"total_steps": 3072, "seed": 2})
    records = [[], []]
    trainer = Trainer(
        lanes_of(config(*TWENTY_STEPS), *changes), lambda lane, record: records[lane].append(record)
    )
    trainer.iterate()
    assert [trainer.has_ended(lane) for lane in (0, 1)] == [True, False]
    at_its_end = weights(trainer, 0)
    results = train_to_end(trainer)
    assert torch.equal(weights(trainer, 0), at_its_end)
    assert [len(lane) for lane in records] == [1, 3]
    assert [len(result.kls) for result in results] == [1, 3]
    assert trainer.num_live_steps == 4 * 1024


def test_another_program_is_no_lane_of_this_stack():
    trainer = stack_of(*TWENTY_STEPS)
    with pytest.raises(ConfigError, match=r"^num_epochs=.*must equal"):
        trainer.replace_lanes({0: dataclasses.replace(trainer.config, num_epochs=2)})
    single = Trainer([config("memory=offloaded_optimizer")])
    with pytest.raises(ConfigError, match=r"^memory="):
        single.replace_lanes({0: single.config})
