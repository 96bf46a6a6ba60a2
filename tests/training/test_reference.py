"""Every key reaches what it names: whole iterations against PPO written from the papers.

``tests/helpers/reference.py`` knows nothing of ppo_lab. Both are given the same rollouts, weights
and orders of rows, and must agree in every recorded metric, every weight and every moment of Adam.
"""

import functools

import pytest
import torch

from ppo_lab.memory import STRATEGIES
from ppo_lab.training.trainer import Trainer
from tests.helpers.against_reference import (
    CHANGES,
    OF_LANES,
    at_defaults,
    check_iteration,
    differing,
    of_lane,
    with_keys,
)
from tests.helpers.trainers import config

NETWORK = ("network.hidden=[6,5]", "dtype=float64")
SIZES = {"num_envs": 8, "num_steps": 8}
ENVS = {"discrete": "env=acrobot", "continuous": "env=pendulum"}
RUN = {"total_steps": 320, "num_epochs": 2, "num_minibatches": 2}  # 5 iterations of 4 steps
# All at other than their defaults; target_kl ends one of two updates after some of its 6 steps.
EVERY_KEY = {
    "epsilon": 0.15, "epsilon_high": 0.3, "epsilon_schedule": "linear", "dual_clip": 1.3,
    "value_epsilon": 0.2, "target_kl": 0.026, "lr": 2e-2, "lr_schedule": "linear", "adam_eps": 1e-4,
    "max_grad_norm": 0.2, "separate_grad_clip": True, "gamma": 0.9, "gae_lambda": 0.8,
    "bootstrap_truncated": False, "advantage_normalization": "rollout", "entropy_coef": 0.02,
    "value_coef": 0.7, **RUN, "num_epochs": 3,
}  # fmt: skip
IN_PARTS = ("memory.num_micro_batches=4", "memory.rollout_place=host")


WITH_CRITIC = [name for name, strategy in STRATEGIES.items() if strategy.has_critic]


def label(change):
    return ",".join(f"{key}={value}" for key, value in change.items())


def precision_of(strategy):
    """Return how near the weights must come: the host's Adam scales gradients in float32."""
    return 1e-6 if strategy == "offloaded_optimizer" else 1e-9


def keys_for(strategy, keys):
    """Return ``keys`` without what the strategy refuses: one trunk has one gradient."""
    left_out = {"separate_grad_clip"} if STRATEGIES[strategy].shares_trunk else set()
    return {key: value for key, value in keys.items() if key not in left_out}


def typed(keys):
    """Return ``keys`` as they are typed on a command line."""
    return [
        f"{key}={'none' if value is None else str(value).lower()}" for key, value in keys.items()
    ]


@pytest.mark.parametrize("options", [(), IN_PARTS], ids=["whole", "in parts"])
@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("strategy", WITH_CRITIC)
def test_two_iterations_with_every_key_at_another_value_are_the_references(strategy, env, options):
    keys = keys_for(strategy, EVERY_KEY)
    overrides = (*NETWORK, ENVS[env], f"memory={strategy}", "network.activation=relu", *options)
    trainer = Trainer([config(*overrides, *typed(SIZES | keys))])
    reference = of_lane(trainer, 0, keys)
    num_steps = [
        check_iteration(trainer, [reference], seed, atol=precision_of(strategy))[0][
            "ppo/gradient_steps"
        ]
        for seed in (16, 17)
    ]
    assert any(1 < steps < 6 for steps in num_steps)  # else a part would not be seen


def base_of(strategy, env):
    composed = config(*NETWORK, ENVS[env], f"memory={strategy}")
    return at_defaults(composed, **SIZES, **RUN)


@pytest.fixture(scope="module")
def plain():
    """Return ``trained`` with no key changed, each kind of run once."""
    return functools.cache(functools.partial(trained, change=()))


def trained(strategy, env, change, num_iterations):
    base = base_of(strategy, env)
    trainer = Trainer([with_keys(base, dict(change))])
    reference = of_lane(trainer, 0, RUN | dict(change))
    for seed in range(num_iterations):
        check_iteration(trainer, [reference], seed, atol=precision_of(strategy))
    return reference


@pytest.mark.parametrize("change", CHANGES, ids=label)
@pytest.mark.parametrize("strategy", WITH_CRITIC)
def test_a_key_changed_alone_changes_what_the_reference_says(strategy, change, plain):
    if "separate_grad_clip" in change and (
        STRATEGIES[strategy].shares_trunk or STRATEGIES[strategy].always_clips_separately
    ):
        pytest.skip("there is nothing to choose")
    # Half of the changes with each kind of actions, the other half in another strategy.
    env = list(ENVS)[(CHANGES.index(change) + WITH_CRITIC.index(strategy)) % 2]
    num_iterations = 2 if "schedule" in label(change) else 1  # the first is at the full value
    changed = trained(strategy, env, change, num_iterations)
    assert differing(changed, plain(strategy, env, num_iterations=num_iterations)) > 1e-5


STACKABLE = [name for name in WITH_CRITIC if STRATEGIES[name].max_lanes is None]


@pytest.mark.parametrize(("strategy", "env"), list(zip(STACKABLE, ENVS)))
def test_each_lane_of_a_stack_is_the_reference_of_its_own_keys(strategy, env):
    base = base_of(strategy, env)
    changes = [{"seed": 5}, *OF_LANES]
    trainer = Trainer([with_keys(base, change) for change in changes])
    references = [
        of_lane(trainer, lane, RUN | {key: value for key, value in change.items() if key != "seed"})
        for lane, change in enumerate(changes)
    ]
    for seed in (10, 50):
        check_iteration(trainer, references, seed)


@pytest.mark.parametrize(("strategy", "env"), list(zip(STACKABLE, reversed(ENVS))))
def test_a_refilled_lane_is_the_reference_of_its_new_keys_beside_lanes_that_go_on(strategy, env):
    """Keys that no lane had before are among the new ones; the new lane's schedules begin anew."""
    base = base_of(strategy, env)
    trainer = Trainer([with_keys(base, {"seed": seed}) for seed in (1, 2)])
    references = [of_lane(trainer, lane, RUN) for lane in range(2)]
    check_iteration(trainer, references, 10)
    for number, change in enumerate(OF_LANES):
        schedules = {"lr_schedule": "linear", "epsilon_schedule": "linear"} | RUN
        trainer.replace_lanes({1: with_keys(base, schedules | change | {"seed": 20 + number})})
        references[1] = of_lane(trainer, 1, schedules | change)
        check_iteration(trainer, references, 100 * number)
    check_iteration(trainer, references, 7)


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("strategy", WITH_CRITIC)
def test_what_is_collected_is_what_the_references_networks_say(strategy, env):
    trainer = Trainer([base_of(strategy, env)])
    reference = of_lane(trainer, 0, RUN)
    check_iteration(trainer, [reference], 3, atol=precision_of(strategy))  # away from the start
    del trainer.collect  # the trainer's own again
    rollout = trainer.collect()
    observations, actions = rollout.observations[:, 0], rollout.actions[:, 0]
    with torch.no_grad():
        log_prob, _ = reference.policy(observations, actions)
        values = reference.values(observations)
    torch.testing.assert_close(rollout.log_probs[:, 0], log_prob, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rollout.values[:, 0], values, rtol=1e-5, atol=1e-5)
    ended = (rollout.terminated | rollout.truncated)[:-1, 0]
    assert not ended.all()
    after = rollout.next_values[:-1, 0][~ended]
    torch.testing.assert_close(after, values[1:][~ended], rtol=1e-5, atol=1e-5)
