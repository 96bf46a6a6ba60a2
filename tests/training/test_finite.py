"""The first number that is not finite ends a lane in the same iteration, with its place."""

import math

import pytest
import torch

from ppo_lab.memory import STRATEGIES
from ppo_lab.ppo.diagnostics import UpdateLog
from ppo_lab.ppo.losses import ClipRange
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import config, lanes_of, train_to_end

SIZES = ("num_envs=4", "num_steps=8", "num_epochs=2", "num_minibatches=2", "total_steps=96")
NAN, INF = math.nan, math.inf


def trainer_of(*overrides, num_lanes=1):
    return Trainer(lanes_of(config(*SIZES, *overrides), *({"seed": s} for s in range(num_lanes))))


def spoil_step(env, field, at_step, index, value):
    """Have one number of a step of the environments be ``value``."""
    step, number = env.step, 0

    def spoilt(actions):
        nonlocal number
        number += 1
        result = step(actions)
        if number != at_step:
            return result
        tensor = getattr(result, field).clone()
        tensor[index] = value
        result = result._replace(**{field: tensor})
        if field == "rewards":  # as in an environment: both are one
            result = result._replace(env_rewards=tensor)
        return result

    env.step = spoilt


def reason(trainer, lane=0):
    trainer.iterate()
    return trainer.history(lane).diverged


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_an_observation_is_found_where_the_policy_saw_it(value):
    trainer = trainer_of()
    spoil_step(trainer.env, "observations", 5, (0, 3, 1), value)
    # What step 5 returns is seen in step 6.
    place = "in the rollout (step 6 of 8, environment 3)"
    assert reason(trainer) == f"the observation is {value} {place}"
    assert trainer.has_ended(0)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", ["", "env.normalize_rewards=true"])
def test_a_reward_is_found_in_its_step_though_no_episode_has_ended(kind, value):
    trainer = trainer_of(*([kind] if kind else []))
    spoil_step(trainer.env._env if kind else trainer.env, "rewards", 3, (0, 2), value)
    assert reason(trainer) == f"the reward is {value} in the rollout (step 3 of 8, environment 2)"


def test_the_earliest_step_is_named():
    trainer = trainer_of()
    spoil_step(trainer.env, "rewards", 6, (0, 0), INF)
    spoil_step(trainer.env, "observations", 2, (0, 1, 0), NAN)
    assert reason(trainer) == "the observation is nan in the rollout (step 3 of 8, environment 1)"


def test_a_lane_of_a_stack_is_named_and_the_others_train_on():
    trainer = trainer_of(num_lanes=3)
    spoil_step(trainer.env, "rewards", 1, (1, 0), NAN)
    place = "(step 1 of 8, environment 0), lane 1 of the stack"
    assert reason(trainer, 1) == f"the reward is nan in the rollout {place}"
    histories = train_to_end(trainer)
    assert [history.diverged is None for history in histories] == [True, False, True]


def spoil_weights(trainer, at_step, index, value):
    """Have one weight be ``value`` after gradient step ``at_step``."""
    step, number = trainer.optimizer.step, 0

    def spoilt(**options):
        nonlocal number
        number += 1
        norms = step(**options)
        if number == at_step:
            model = trainer.model
            with torch.no_grad():
                (model.value_head or model.policy_head).bias[index] = value
        return norms

    trainer.optimizer.step = spoilt


def test_a_loss_is_found_in_its_gradient_step():
    trainer = trainer_of()
    spoil_weights(trainer, 2, (0, 0), NAN)
    # The third of two epochs' four steps is the first to see it.
    place = "gradient step 3: epoch 2, minibatch 1"
    assert reason(trainer) == f"losses/value_loss is nan in the update ({place})"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_gradient_is_found_in_its_step(strategy):
    trainer = trainer_of(f"memory={strategy}")
    calls = []

    def overflow(gradient):
        calls.append(1)
        return gradient * INF if len(calls) == 4 else gradient

    trainer.model.policy_head.bias.register_hook(overflow)
    name = "grad_norm_actor" if strategy == "parked" else "grad_norm"
    found = reason(trainer)
    assert found.startswith(f"losses/{name} is ")
    assert found.endswith(" in the update (gradient step 4: epoch 2, minibatch 2)")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_parameter_that_the_last_step_spoilt_is_found_though_no_loss_saw_it(strategy):
    trainer = trainer_of(f"memory={strategy}")
    num_steps = 8 if strategy == "parked" else 4
    spoil_weights(trainer, num_steps, (0, 0), INF)
    last = "policy" if strategy == "critic_free" else "value"
    assert reason(trainer) == f"the parameter {last}_head.bias is inf after the update"


def test_numbers_so_large_that_their_sum_overflows_are_no_divergence():
    trainer = trainer_of("env.normalize_rewards=true")
    spoil_step(trainer.env._env, "rewards", 3, (0, 2), 3e38)
    spoil_step(trainer.env._env, "rewards", 4, (0, 2), 3e38)
    assert reason(trainer) is None


def test_losses_and_norms_are_counted_step_by_step_without_those_not_taken():
    """Two epochs of one minibatch; the numbers of a step are policy loss, value loss and norm."""
    log = UpdateLog((2, 3, 4), num_minibatches=1, num_clip_groups=1, like=torch.zeros(()))
    log.steps[1].grad_norms[0, 1] = INF  # of lane 1, the sixth number
    log.steps[0].value_loss[2] = NAN  # lane 2 stopped before this step
    log.steps[0].active[2] = False
    log.steps[1].active[2] = False
    clip = ClipRange(torch.full((3,), 0.2), torch.full((3,), 0.2))
    assert log.means(clip).first_bad.tolist() == [-1, 5, -1]
