"""Diagnostics of a whole rollout after the update from it.

Shapes: L = lanes, R = rows per lane.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.collector import policy_over_rollout
from ppo_lab.ppo.diagnostics import RatioDiagnostics, ratio_diagnostics, ratio_histogram
from ppo_lab.ppo.losses import ClipRange, explained_variance, normalize_advantages
from ppo_lab.ppo.rollout import ObservationStore, RolloutRows

__all__ = ["RolloutDiagnostics", "after_update"]


class RolloutDiagnostics(NamedTuple):
    """Diagnostics of a whole rollout, after the last epoch."""

    ratios: RatioDiagnostics
    entropy: Tensor  # (L,) nats
    ratio_counts: Tensor  # (L, 64)
    explained_variance: Tensor  # (L,) of the critic that collected the rollout
    advantages_std: Tensor  # (L,) before normalization


@torch.no_grad()
def after_update(
    model: ActorCritic,
    rows: RolloutRows,
    clip: ClipRange,
    *,
    are_normalized: bool,
    rows_per_pass: int,
    store: ObservationStore,
) -> RolloutDiagnostics:
    """Return the diagnostics of ``rows``.

    ``are_normalized`` says whether the update normalized the advantages; ``rows_per_pass`` limits
    the rows per lane of a forward pass.
    """
    log_ratio, entropy = policy_over_rollout(model, rows, rows_per_pass, store)
    advantages = rows.advantages
    if are_normalized:
        # As in the loss: their signs decide which gradients the clip cuts.
        advantages = normalize_advantages(advantages)
    return RolloutDiagnostics(
        ratios=ratio_diagnostics(log_ratio, advantages, clip),
        entropy=entropy.mean(-1),
        ratio_counts=ratio_histogram(log_ratio),
        explained_variance=explained_variance(rows.values, rows.value_targets),
        advantages_std=rows.advantages.std(-1, correction=int(rows.advantages.shape[-1] > 1)),
    )
