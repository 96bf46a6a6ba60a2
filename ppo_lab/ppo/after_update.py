"""Diagnostics of a whole rollout after the update from it.

Shapes: L = lanes, R = rows per lane.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.networks import ActorCritic
from ppo_lab.networks.sequences import Sequences
from ppo_lab.ppo.diagnostics import RatioDiagnostics, ratio_diagnostics, ratio_histogram
from ppo_lab.ppo.losses import (
    ClipRange,
    explained_variance,
    normalize_advantages,
    standard_deviation,
)
from ppo_lab.ppo.rollout import RolloutRows
from ppo_lab.ppo.row_weights import live_weights, rows_mean
from ppo_lab.ppo.update import AdvantageNormalization, UpdatePlan

__all__ = ["RolloutDiagnostics", "after_update", "policy_over_rollout"]


class RolloutDiagnostics(NamedTuple):
    """Diagnostics of a whole rollout, after the last epoch."""

    ratios: RatioDiagnostics
    entropy: Tensor  # (L,) nats
    ratio_counts: Tensor  # (L, 64)
    explained_variance: Tensor | None  # (L,) of the critic that collected the rollout, if any
    advantages_std: Tensor  # (L,) before normalization


@torch.no_grad()
def after_update(
    model: ActorCritic, rows: RolloutRows, clip: ClipRange, plan: UpdatePlan
) -> RolloutDiagnostics:
    """Return the diagnostics of ``rows`` after an update by ``plan``; of the live ones only."""
    log_ratio, entropy = policy_over_rollout(model, rows, plan)
    advantages, live = rows.advantages, rows.live
    weights = None if live is None else live_weights(live)
    if plan.normalization is not AdvantageNormalization.none:
        # As in the loss: their signs decide which gradients the clip cuts.
        advantages = normalize_advantages(advantages, live)
    explained = None
    if rows.values is not None and rows.value_targets is not None:
        explained = explained_variance(rows.values, rows.value_targets, weights)
    clipped_steps = plan.clipped_steps
    return RolloutDiagnostics(
        ratios=ratio_diagnostics(log_ratio, advantages, clip, live, clipped_steps=clipped_steps),
        entropy=rows_mean(entropy, weights),
        ratio_counts=ratio_histogram(log_ratio, live),
        explained_variance=explained,
        advantages_std=standard_deviation(rows.advantages, live),
    )


@torch.no_grad()
def policy_over_rollout(
    model: ActorCritic, rows: RolloutRows, plan: UpdatePlan
) -> tuple[Tensor, Tensor]:
    """Return log ratios and entropies (L, R) of the updated policy over the whole rollout."""

    def evaluate(inputs: Tensor | Sequences, part: slice) -> list[Tensor]:
        new = model.evaluate(inputs, rows.actions[:, part], with_values=False)
        assert new.log_probs is not None
        assert new.entropies is not None
        return [new.log_probs, new.entropies]

    log_probs, entropies = plan.in_passes(evaluate, rows.observations, rows.sequences)
    return log_probs - rows.log_probs, entropies
