"""The two phases: what collect records, and what an update does with it."""

import dataclasses
import math

import pytest
import torch

from ppo_lab.memory import STRATEGIES
from ppo_lab.ppo.after_update import policy_over_rollout
from ppo_lab.ppo.collector import Collector
from ppo_lab.ppo.losses import normalize_advantages
from ppo_lab.ppo.update import UpdatePlan, update
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils import rng
from tests.helpers.trainers import (
    PENDULUM,
    TWENTY_STEPS,
    config,
    lane_of,
    lanes_of,
    record_rows,
    spy_on,
    weights,
)


def trainer_of(*overrides):
    return Trainer([config(*TWENTY_STEPS, *overrides)])


def in_passes(trainer, num_rows):
    """Return the trainer's plan with at most ``num_rows`` in a forward pass."""
    return dataclasses.replace(trainer.plan, rows_per_pass=num_rows)


def permutations_of(trainer, num_epochs=5):
    """Return the very orders that ``trainer.update`` draws, (E, L, R)."""
    keys = trainer._lanes.keys(rng.Stream.SHUFFLE, trainer.iteration)
    num_rows = trainer.config.num_rows
    return torch.stack(
        [rng.permutation(rng.fold_in(keys, epoch), num_rows) for epoch in range(num_epochs)]
    )


def one_step_at_a_time(trainer, rows):
    """Yield the diagnostics of each of an update's minibatches, as an update of its own."""
    size = trainer.config.num_rows // trainer.config.num_minibatches
    plan = UpdatePlan(1, trainer.config.advantage_normalization)
    coefficients = trainer._lanes.hyperparameters(trainer.iteration)
    for order in permutations_of(trainer):
        for part in order.split(size, -1):
            yield update(
                trainer.model, trainer.optimizer, rows, part.unsqueeze(0), coefficients, plan
            )


NORMALIZED = (*PENDULUM, "env.normalize_observations=true")
FIRST_STEP_SETTINGS = {
    "cartpole": (),
    "pendulum": PENDULUM,
    "pendulum, normalised observations": NORMALIZED,
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("setting", FIRST_STEP_SETTINGS)
def test_the_ratio_is_one_on_the_first_minibatch_of_every_update(setting, strategy):
    """Whatever the environment's statistics did since: the rollout keeps what the policy saw."""
    trainer = trainer_of(*FIRST_STEP_SETTINGS[setting], f"memory={strategy}")
    for iteration in range(3):
        trainer.progress.iteration = iteration
        rows = record_rows(trainer)
        first = next(one_step_at_a_time(trainer, rows))
        assert abs(math.log(first.ratio_min)) < 1e-6
        assert abs(math.log(first.ratio_max)) < 1e-6
        assert first.clip_frac.item() == 0.0
        assert first.approx_kl.item() < 1e-9
        trainer.update(rows)  # moves policy and, at the next rollout, statistics


def test_a_rollout_hands_its_observations_on_to_the_next():
    trainer = trainer_of()
    first, second = trainer.collect(), trainer.collect()
    ended = first.terminated[-1] | first.truncated[-1]
    trainer_again = trainer_of()
    both = [trainer_again.collect(), trainer_again.collect()]
    assert torch.equal(second.observations, both[1].observations)
    # CartPole moves by at most a few hundredths a step: no reset between the rollouts.
    step = (second.observations[0] - first.observations[-1]).abs().amax(-1)
    assert (step[~ended] < 0.5).all()
    assert not torch.equal(second.observations[0], first.observations[0])


def test_a_rollouts_values_are_those_of_what_was_seen_and_of_where_it_led():
    trainer = trainer_of("env.max_episode_steps=5", "gamma=0.9")
    rollout = trainer.collect()
    ended = rollout.terminated | rollout.truncated
    assert rollout.truncated.any()
    # Where no episode ended, the next value is the next row's value.
    same = rollout.next_values[:-1][~ended[:-1]], rollout.values[1:][~ended[:-1]]
    torch.testing.assert_close(*same, rtol=0.0, atol=1e-6)
    # Where one did, it is that of its true last observation and not of the new start.
    other = rollout.next_values[:-1][ended[:-1]], rollout.values[1:][ended[:-1]]
    assert ((other[0] - other[1]).abs() > 1e-6).all()


def test_values_in_several_passes_are_the_values_in_one():
    trainer = trainer_of()
    collectors = [
        Collector(trainer.env, trainer.model, 32, in_passes(trainer, rows)) for rows in (10_000, 7)
    ]
    keys = trainer._lanes.keys(rng.Stream.ACTION, 0)
    noise = trainer.model.distribution.noise(keys, 32 * 8, torch.float32)
    trainer.env.reset()
    keys = torch.zeros(1, dtype=torch.int64)  # of whole episodes, which these are not
    whole = collectors[0].collect(noise, keys)
    trainer.env.reset()
    parts = collectors[1].collect(noise, keys)
    assert torch.equal(whole.observations, parts.observations)
    torch.testing.assert_close(whole.values, parts.values, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(whole.next_values, parts.next_values, rtol=0.0, atol=1e-6)


def test_policy_over_the_rollout_does_not_depend_on_the_size_of_its_passes():
    trainer = trainer_of()
    rows = record_rows(trainer)
    trainer.update(rows)
    whole = policy_over_rollout(trainer.model, rows, in_passes(trainer, 10_000))
    parts = policy_over_rollout(trainer.model, rows, in_passes(trainer, 100))
    for mine, theirs in zip(parts, whole):
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=1e-6)
    assert whole[0].abs().max() > 1e-4  # the policy has moved since the rollout


def test_not_bootstrapping_truncations_treats_them_as_terminations():
    keeps, drops = (
        trainer_of("env.max_episode_steps=5", f"bootstrap_truncated={value}")
        for value in ("true", "false")
    )
    rollout = keeps.collect()
    kept, dropped = keeps.advantages(rollout), drops.advantages(rollout)
    at = rollout.truncated
    # gamma = 0.99 by default; the trace ends there either way.
    difference = (kept.advantages - dropped.advantages)[at]
    torch.testing.assert_close(difference, 0.99 * rollout.next_values[at])
    forgotten = rollout._replace(next_values=rollout.next_values.masked_fill(at, math.nan))
    assert torch.equal(drops.advantages(forgotten).advantages, dropped.advantages)


def test_target_kl_stops_before_the_first_step_whose_minibatch_is_too_far():
    overrides = ("lr=0.01", "target_kl=0.004")
    rows = record_rows(trainer_of(*overrides))
    # The same steps without a target, one at a time, show each minibatch's KL before its step.
    free = trainer_of("lr=0.01")
    expected, first_kls = 0, []
    stopped_weights = None
    for diagnostics in one_step_at_a_time(free, rows):
        first_kls.append(diagnostics.approx_kl.item())
        if first_kls[-1] > 1.5 * 0.004:
            break
        expected += 1
        stopped_weights = weights(free)
    assert 1 < expected < 20  # else the test would show nothing
    stopping = trainer_of(*overrides)
    found = stopping.update(rows)
    assert found.gradient_steps.tolist() == [expected]
    assert found.epochs_done.tolist() == [expected / 4]
    assert found.approx_kl.item() == pytest.approx(sum(first_kls[:expected]) / expected, rel=1e-3)
    torch.testing.assert_close(weights(stopping), stopped_weights, rtol=0.0, atol=1e-6)


def test_a_stopped_lane_stays_stopped_and_leaves_the_others_alone():
    base = config(*TWENTY_STEPS)
    stack = Trainer(lanes_of(base, {"seed": 1}, {"seed": 2, "target_kl": 1e-9}, {"seed": 3}))
    rows = record_rows(stack)
    found = stack.update(rows)
    # The first minibatch's KL is 0, the second's is not: one gradient step, a quarter epoch.
    assert found.gradient_steps.tolist() == [20, 1, 20]
    assert found.epochs_done.tolist() == [5.0, 0.25, 5.0]
    untouched = Trainer(lanes_of(base, {"seed": 1}, {"seed": 2}, {"seed": 3}))
    untouched.update(rows)
    assert torch.equal(weights(stack, 0), weights(untouched, 0))
    alone = Trainer(lanes_of(base, {"seed": 2}))
    first = next(one_step_at_a_time(alone, lane_of(rows, 1)))
    torch.testing.assert_close(weights(stack, 1), weights(alone), rtol=0.0, atol=1e-6)
    assert found.policy_loss[1].item() == pytest.approx(first.policy_loss.item(), abs=1e-6)
    assert found.grad_norm[1].item() == pytest.approx(first.grad_norm.item(), rel=1e-4)


def test_a_stopped_lane_does_not_start_again_when_a_later_minibatch_is_near():
    trainer = trainer_of("target_kl=0.05")
    rows = record_rows(trainer)
    # The rows of the second minibatch alone look far: r = exp(-2), k3 = 0.135 - 1 + 2 = 1.135.
    rows.log_probs[0, permutations_of(trainer)[0, 0, 256:512]] += 2.0
    assert trainer.update(rows).gradient_steps.tolist() == [1]


def test_target_kl_none_takes_every_step():
    trainer = trainer_of("lr=0.05")
    found = trainer.update(record_rows(trainer))
    assert found.gradient_steps.tolist() == [20]
    assert found.epochs_done.tolist() == [5.0]


@pytest.mark.parametrize("mode", ["minibatch", "rollout", "none"])
def test_advantages_are_normalised_over_the_rows_that_were_asked_for(mode):
    # One gradient step on the first quarter alone: the ratio is 1, so the policy loss is minus
    # the mean of that quarter's advantages, as they were normalised.
    trainer = trainer_of(f"advantage_normalization={mode}")
    rows = record_rows(trainer)
    found = next(one_step_at_a_time(trainer, rows))
    quarter = permutations_of(trainer_of())[0, 0, :256]
    expected = {
        "minibatch": 0.0,  # normalised over themselves
        "rollout": -normalize_advantages(rows.advantages)[0, quarter].mean().item(),
        "none": -rows.advantages[0, quarter].mean().item(),
    }
    assert len({round(value, 3) for value in expected.values()}) == 3
    assert found.policy_loss.item() == pytest.approx(expected[mode], abs=1e-5)


def test_the_loss_adds_policy_entropy_and_value_with_their_coefficients():
    # The gradient is linear in the coefficients: g(c1, c2) = p - c2 e + c1 v.
    def gradient(entropy_coef, value_coef):
        trainer = trainer_of(f"entropy_coef={entropy_coef}", f"value_coef={value_coef}")
        spy = spy_on(trainer)
        trainer.update(rows)
        return torch.cat([g.flatten() for g in spy.gradients[0]])

    rows = record_rows(trainer_of())
    policy, entropy = gradient(0.0, 0.0), gradient(1.0, 0.0)
    value = gradient(0.0, 1.0)
    combined = policy + 0.25 * (entropy - policy) + 0.5 * (value - policy)
    torch.testing.assert_close(gradient(0.25, 0.5), combined, rtol=1e-3, atol=1e-5)


def test_the_entropy_bonus_raises_the_entropy():
    missing = []  # how far the entropy is below its maximum, log 2
    for coefficient in (0.0, 10.0):
        trainer = trainer_of(f"entropy_coef={coefficient}", "lr=0.01")
        rows = record_rows(trainer)
        for _ in range(3):
            trainer.update(rows)
        entropy = policy_over_rollout(trainer.model, rows, trainer.plan)[1].mean().item()
        missing.append(math.log(2.0) - entropy)
    assert missing[1] < 0.5 * missing[0]


@pytest.mark.parametrize("strategy", ["co_resident", "shared_trunk"])
@pytest.mark.parametrize("poison", [1e3, math.inf, math.nan])
def test_gradients_never_mix_lanes(strategy, poison):
    """Another lane's data, however bad, do not change one bit of a lane's gradients."""
    base = config(*TWENTY_STEPS, f"memory={strategy}")
    stack = Trainer(lanes_of(base, {"seed": 1}, {"seed": 2}))
    rows = record_rows(stack)

    def gradients(rows):
        spy = spy_on(stack)
        stack.update(rows)
        return spy.gradients

    expected = gradients(rows)
    poisoned = rows._replace(
        observations=rows.observations.clone(),
        log_probs=rows.log_probs.clone(),
        advantages=rows.advantages.clone(),
        value_targets=rows.value_targets.clone(),
    )
    for tensor in (poisoned.observations, poisoned.advantages, poisoned.value_targets):
        tensor[1] = poison
    poisoned.log_probs[1] = -1.0
    for mine, theirs in zip(gradients(poisoned), expected):
        for gradient, reference in zip(mine, theirs):
            assert torch.equal(gradient[0], reference[0])
    assert not torch.equal(gradients(poisoned)[0][0][1], expected[0][0][1])


def test_diagnostics_are_means_over_the_gradient_steps():
    together, apart = trainer_of(), trainer_of()
    rows = record_rows(together)
    found = together.update(rows)
    steps = list(one_step_at_a_time(apart, rows))
    assert len(steps) == 20
    for name in found._fields:
        if getattr(found, name) is None:
            continue  # norms that are not taken
        parts = torch.stack([getattr(step, name) for step in steps]).double()
        expected = {
            "ratio_min": parts.amin(0),
            "ratio_max": parts.amax(0),
            "gradient_steps": parts.sum(0),
            "epochs_done": parts.sum(0) / 4,
        }.get(name, parts.mean(0))
        torch.testing.assert_close(
            getattr(found, name).double(), expected, rtol=1e-4, atol=1e-6, msg=name
        )


def test_an_update_shuffles_anew_in_every_epoch_and_iteration():
    trainer = trainer_of()
    permutations = [permutations_of(trainer)]
    trainer.progress.iteration = 1
    permutations.append(permutations_of(trainer))
    rows = torch.cat(permutations).flatten(0, 1)  # 10 orders
    assert len(rows.unique(dim=0)) == 10


def test_the_orders_that_are_drawn_are_those_that_are_dealt(monkeypatch):
    # Ties the helper above to the trainer: what it calls the orders is what update is given.
    trainer, seen = trainer_of(), []
    monkeypatch.setattr(
        "ppo_lab.training.trainer.update",
        lambda model, optimizer, rows, permutations, *rest: seen.append(permutations),
    )
    trainer.progress.iteration = 3
    trainer.update(record_rows(trainer))
    assert torch.equal(seen[0], permutations_of(trainer))
