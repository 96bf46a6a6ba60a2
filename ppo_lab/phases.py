"""PPO's two phases: collect a rollout, update on it. The trainer runs them, nothing else.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, O = observation size,
R = T * N rows per lane, B = rows per lane in a minibatch, E = epochs, M = minibatches per epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.diagnostics import clip_fractions
from ppo_lab.envs.base import Env, Step
from ppo_lab.networks import ActorCritic
from ppo_lab.optimizer import LaneOptimizer
from ppo_lab.ppo import (
    ClipRange,
    approx_kl_k3,
    clipped_surrogate,
    normalize_advantages,
    value_loss,
)
from ppo_lab.rollout import Batch, Rollout, RolloutRows, minibatches

__all__ = [
    "AdvantageNormalization",
    "Coefficients",
    "Collector",
    "UpdateDiagnostics",
    "UpdatePlan",
    "policy_over_rollout",
    "update",
]


class AdvantageNormalization(Enum):
    """Over which rows advantages get mean 0 and standard deviation 1."""

    minibatch = "minibatch"
    rollout = "rollout"
    none = "none"


class Coefficients(NamedTuple):
    """What may differ between lanes, this iteration's values; every field (L,)."""

    lr: Tensor
    clip: ClipRange
    value_epsilon: Tensor | None  # None where no lane clips its value loss
    dual_clip: Tensor | None  # None where no lane bounds its objective below
    target_kl: Tensor | None  # nats, None where no lane stops early
    entropy_coef: Tensor
    value_coef: Tensor
    max_grad_norm: Tensor


@dataclass(frozen=True)
class UpdatePlan:
    """What all lanes of a stack share in an update."""

    num_minibatches: int
    normalization: AdvantageNormalization


class UpdateDiagnostics(NamedTuple):
    """Means over the gradient steps that a lane really took; every field (L,)."""

    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor  # nats
    grad_norm: Tensor  # before clipping, actor and critic together
    approx_kl: Tensor  # nats, k3
    old_approx_kl: Tensor  # nats, k1
    clip_frac: Tensor
    clip_above_frac: Tensor
    clip_below_frac: Tensor
    cut_above_frac: Tensor
    cut_below_frac: Tensor
    pass_frac: Tensor
    ratio_min: Tensor  # the smallest and largest of all gradient steps, not a mean
    ratio_max: Tensor
    gradient_steps: Tensor  # fewer than E * M when target_kl stopped the lane
    epochs_done: Tensor


class Collector:
    """Keeps what one rollout hands to the next: the current observations and the storage."""

    def __init__(self, env: Env, model: ActorCritic, *, num_steps: int, rows_per_pass: int) -> None:
        """Reset ``env``; rollouts have ``num_steps``, forward passes ``rows_per_pass`` rows."""
        self.env_s = 0.0
        """Seconds the host has spent in ``env.step``; launches only where steps run on CUDA."""
        self._env, self._model = env, model
        self._num_steps, self._rows_per_pass = num_steps, rows_per_pass
        self._observations = env.reset()  # (L, N, O)

    @torch.no_grad()
    def collect(self, noise: Tensor) -> Rollout:
        """Return the next T steps; ``noise`` (L, T * N, …) decides every action."""
        env, distribution = self._env, self._model.distribution
        observations = self._observations
        noises = noise.unflatten(1, (self._num_steps, -1)).unbind(1)
        seen: list[Tensor] = []
        parameters: list[Tensor] = []
        actions: list[Tensor] = []
        steps: list[Step] = []
        for step_noise in noises:
            policy_parameters = self._model.policy(observations)
            action = distribution.sample(policy_parameters, step_noise)
            seen.append(observations)
            parameters.append(policy_parameters)
            actions.append(action)
            begin_s = time.perf_counter()
            step = env.step(action)
            self.env_s += time.perf_counter() - begin_s
            observations = step.observations
            steps.append(step)
        self._observations = observations
        return self._rollout(seen, parameters, actions, steps)

    def _rollout(
        self,
        seen: list[Tensor],
        parameters: list[Tensor],
        actions: list[Tensor],
        steps: list[Step],
    ) -> Rollout:
        """Return the steps as one rollout, with log probabilities and values of all rows at once.

        The critic is not needed to act, so it runs over the rollout afterwards, in far fewer and
        larger operations.
        """
        observations = torch.stack(seen)
        policy_parameters, action = torch.stack(parameters), torch.stack(actions)
        last_observations = torch.stack([step.last_observations for step in steps])
        return Rollout(
            observations=observations,
            actions=action,
            log_probs=self._model.distribution.log_prob(policy_parameters, action),
            values=self._values(observations),
            next_values=self._values(last_observations),
            rewards=torch.stack([step.rewards for step in steps]),
            env_rewards=torch.stack([step.env_rewards for step in steps]),
            terminated=torch.stack([step.terminated for step in steps]),
            truncated=torch.stack([step.truncated for step in steps]),
        )

    def _values(self, observations: Tensor) -> Tensor:
        """Return the critic's (T, L, N) for (T, L, N, O)."""
        rows = observations.transpose(0, 1).flatten(1, 2)  # (L, T * N, O)
        values = _in_passes(self._model.values, rows, self._rows_per_pass)
        return values.unflatten(1, (len(observations), -1)).transpose(0, 1)


def _in_passes(
    function: Callable[[Tensor], Tensor], observations: Tensor, rows_per_pass: int
) -> Tensor:
    """Return ``function`` of (L, R, O), at most ``rows_per_pass`` rows per lane at a time.

    A forward pass over a whole rollout may need more memory than the update itself.
    """
    if observations.shape[1] <= rows_per_pass:
        return function(observations)
    return torch.cat([function(part) for part in observations.split(rows_per_pass, 1)], 1)


def update(
    model: ActorCritic,
    optimizer: LaneOptimizer,
    rows: RolloutRows,
    orders: Tensor,
    coefficients: Coefficients,
    plan: UpdatePlan,
) -> UpdateDiagnostics:
    """Pass over ``rows`` once per order in ``orders`` (E, L, R); nothing is read back to the host.

    With ``target_kl`` a lane stops before the first gradient step whose minibatch shows a k3 KL
    above 1.5 times it, and sits out the rest of the update (Stable-Baselines3's rule).
    """
    if plan.normalization is AdvantageNormalization.rollout:
        rows = rows._replace(advantages=normalize_advantages(rows.advantages))
    target_kl = coefficients.target_kl
    active = None  # every lane, unless target_kl may stop some
    if target_kl is not None:
        active = torch.ones_like(target_kl, dtype=torch.bool)
    log = _StepLog()
    for order in orders.unbind(0):
        for batch in minibatches(rows, order, plan.num_minibatches):
            loss, step = _loss(model, batch, coefficients, plan)
            if active is not None and target_kl is not None:
                active = active & (approx_kl_k3(step.log_ratio) <= 1.5 * target_kl)
            optimizer.zero_grad()
            loss.sum().backward()
            grad_norm = optimizer.step(
                lr=coefficients.lr, max_grad_norm=coefficients.max_grad_norm, active=active
            )
            log.append(step, grad_norm, active)
    optimizer.zero_grad()
    return log.means(coefficients.clip, plan.num_minibatches)


class _Step(NamedTuple):
    """One gradient step's numbers, detached."""

    log_ratio: Tensor  # (L, B)
    advantages: Tensor  # (L, B)
    policy_loss: Tensor  # (L,)
    value_loss: Tensor  # (L,)
    entropy: Tensor  # (L,)


def _loss(
    model: ActorCritic, batch: Batch, coefficients: Coefficients, plan: UpdatePlan
) -> tuple[Tensor, _Step]:
    """Return each lane's loss (L,), policy - c2 * entropy + c1 * value (arXiv:1707.06347 eq. 9)."""
    policy_parameters, values = model(batch.observations)
    log_prob, entropies = model.distribution.log_prob_and_entropy(policy_parameters, batch.actions)
    log_ratio, entropy = log_prob - batch.log_probs, entropies.mean(-1)
    advantages = batch.advantages
    if plan.normalization is AdvantageNormalization.minibatch:
        advantages = normalize_advantages(advantages)
    policy = clipped_surrogate(log_ratio, advantages, coefficients.clip, coefficients.dual_clip)
    value = value_loss(values, batch.values, batch.value_targets, coefficients.value_epsilon)
    loss = policy - coefficients.entropy_coef * entropy + coefficients.value_coef * value
    return loss, _Step(
        log_ratio.detach(), advantages, policy.detach(), value.detach(), entropy.detach()
    )


class _StepLog:
    """Keeps every gradient step's numbers on the device and summarises them once."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._grad_norms: list[Tensor] = []
        self._active: list[Tensor] = []

    def append(self, step: _Step, grad_norm: Tensor, active: Tensor | None) -> None:
        self._steps.append(step)
        self._grad_norms.append(grad_norm)
        self._active.append(
            torch.ones_like(grad_norm, dtype=torch.bool) if active is None else active
        )

    def means(self, clip: ClipRange, num_minibatches: int) -> UpdateDiagnostics:
        """Return means over the K gradient steps in which a lane was active."""
        log_ratio, advantages, policy, value, entropy = (
            torch.stack(column) for column in zip(*self._steps)
        )  # (K, L, B) twice, then (K, L)
        active = torch.stack(self._active)  # (K, L)
        num_active = active.sum(0)

        def mean(steps: Tensor) -> Tensor:
            return steps.masked_fill(~active, 0.0).sum(0) / num_active.clamp(min=1)

        shares = clip_fractions(log_ratio, advantages, clip)
        taken = log_ratio.masked_fill(~active.unsqueeze(-1), 0.0)  # a ratio of 1 for the rest
        return UpdateDiagnostics(
            policy_loss=mean(policy),
            value_loss=mean(value),
            entropy=mean(entropy),
            grad_norm=mean(torch.stack(self._grad_norms)),
            approx_kl=mean(approx_kl_k3(log_ratio)),
            old_approx_kl=mean(-log_ratio.mean(-1)),
            **{name: mean(share) for name, share in shares.items()},
            ratio_min=taken.amin((0, 2)).exp(),
            ratio_max=taken.amax((0, 2)).exp(),
            gradient_steps=num_active,
            epochs_done=num_active / num_minibatches,
        )


@torch.no_grad()
def policy_over_rollout(
    model: ActorCritic, rows: RolloutRows, rows_per_pass: int
) -> tuple[Tensor, Tensor]:
    """Return log ratios and entropies (L, R) of the updated policy over the whole rollout."""
    policy_parameters = _in_passes(model.policy, rows.observations, rows_per_pass)
    log_prob, entropy = model.distribution.log_prob_and_entropy(policy_parameters, rows.actions)
    return log_prob - rows.log_probs, entropy
