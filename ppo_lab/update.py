"""The second of PPO's two phases: learn from a rollout.

Shapes: L = lanes, R = rows per lane of a rollout, E = epochs, M = minibatches per epoch,
K = E * M gradient steps, B = rows per lane in a minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.networks import ActorCritic
from ppo_lab.optimizer import LaneOptimizer
from ppo_lab.ppo import (
    ClipRange,
    approx_kl_k3,
    clipped_surrogate,
    normalize_advantages,
    value_loss,
)
from ppo_lab.rollout import Batch, RolloutRows, minibatches
from ppo_lab.step_log import StepLog, UpdateDiagnostics

__all__ = ["AdvantageNormalization", "Coefficients", "UpdatePlan", "update"]


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
    num_dry_steps: int | None = None
    """A forecast takes only the first few gradient steps; memory is that of all. None takes all."""


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
    num_epochs, num_lanes, num_rows = orders.shape
    num_steps = num_epochs * plan.num_minibatches
    log = StepLog(num_steps, num_lanes, num_rows // plan.num_minibatches, like=rows.advantages)
    target_kl = coefficients.target_kl
    active = None  # every lane, unless target_kl may stop some
    if target_kl is not None:
        active = torch.ones_like(target_kl, dtype=torch.bool)
    batches = (b for o in orders.unbind(0) for b in minibatches(rows, o, plan.num_minibatches))
    for step, batch in zip(range(num_steps)[: plan.num_dry_steps], batches):
        loss = _loss(model, batch, coefficients, plan, log, step)
        if active is not None and target_kl is not None:
            active = active & (approx_kl_k3(log.log_ratios[step]) <= 1.5 * target_kl)
            log.active[step] = active
        optimizer.zero_grad()
        loss.sum().backward()
        log.grad_norm[step] = optimizer.step(
            lr=coefficients.lr, max_grad_norm=coefficients.max_grad_norm, active=active
        )
    optimizer.zero_grad()
    return log.means(coefficients.clip, plan.num_minibatches)


def _loss(
    model: ActorCritic,
    batch: Batch,
    coefficients: Coefficients,
    plan: UpdatePlan,
    log: StepLog,
    step: int,
) -> Tensor:
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
    log.log_ratios[step] = log_ratio.detach()
    log.advantages[step] = advantages
    log.policy_loss[step] = policy.detach()
    log.value_loss[step] = value.detach()
    log.entropy[step] = entropy.detach()
    return loss
