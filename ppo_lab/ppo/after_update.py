"""Diagnostics of a whole rollout after the update from it.

Shapes: L = lanes, R = rows per lane.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.diagnostics import RatioDiagnostics, ratio_diagnostics, ratio_histogram
from ppo_lab.ppo.losses import ClipRange, explained_variance, normalize_advantages
from ppo_lab.ppo.rollout import RolloutRows
from ppo_lab.ppo.update import AdvantageNormalization, UpdatePlan

__all__ = ["RolloutDiagnostics", "after_update", "policy_over_rollout"]


class RolloutDiagnostics(NamedTuple):
    """Diagnostics of a whole rollout, after the last epoch."""

    ratios: RatioDiagnostics
    entropy: Tensor  # (L,) nats
    ratio_counts: Tensor  # (L, 64)
    explained_variance: Tensor  # (L,) of the critic that collected the rollout
    advantages_std: Tensor  # (L,) before normalization


@torch.no_grad()
def after_update(
    model: ActorCritic, rows: RolloutRows, clip: ClipRange, plan: UpdatePlan
) -> RolloutDiagnostics:
    """Return the diagnostics of ``rows`` after an update by ``plan``."""
    log_ratio, entropy = policy_over_rollout(model, rows, plan)
    advantages = rows.advantages
    if plan.normalization is not AdvantageNormalization.none:
        # As in the loss: their signs decide which gradients the clip cuts.
        advantages = normalize_advantages(advantages)
    return RolloutDiagnostics(
        ratios=ratio_diagnostics(log_ratio, advantages, clip),
        entropy=entropy.mean(-1),
        ratio_counts=ratio_histogram(log_ratio),
        explained_variance=explained_variance(rows.values, rows.value_targets),
        advantages_std=rows.advantages.std(-1, correction=int(rows.advantages.shape[-1] > 1)),
    )


@torch.no_grad()
def policy_over_rollout(
    model: ActorCritic, rows: RolloutRows, plan: UpdatePlan
) -> tuple[Tensor, Tensor]:
    """Return log ratios and entropies (L, R) of the updated policy over the whole rollout."""
    policy_parameters = plan.in_passes(model.policy, rows.observations)
    log_prob, entropy = model.distribution.log_prob_and_entropy(policy_parameters, rows.actions)
    return log_prob - rows.log_probs, entropy
