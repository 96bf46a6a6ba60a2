"""What the updated policy and the critic say of the rollout they learned from.

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
    """Numbers of a whole rollout, after the last epoch."""

    ratios: RatioDiagnostics
    entropy: Tensor  # (L,) nats
    ratio_counts: Tensor  # (L, 64)
    explained_variance: Tensor  # (L,) of the critic that collected the rollout
    advantages_std: Tensor  # (L,) before normalisation


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
    """Return the numbers of ``rows``; ``are_normalized`` says whether their advantages were."""
    log_ratio, entropy = policy_over_rollout(model, rows, rows_per_pass, store)
    advantages = rows.advantages
    if are_normalized:
        # The gradient saw them standardised, and their signs decide what the clip cuts.
        advantages = normalize_advantages(advantages)
    return RolloutDiagnostics(
        ratios=ratio_diagnostics(log_ratio, advantages, clip),
        entropy=entropy.mean(-1),
        ratio_counts=ratio_histogram(log_ratio),
        explained_variance=explained_variance(rows.values, rows.value_targets),
        advantages_std=rows.advantages.std(-1, correction=int(rows.advantages.shape[-1] > 1)),
    )
