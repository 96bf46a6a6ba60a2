"""PPO's arithmetic, free of networks, devices and loops.

Shapes: L = lanes, B = minibatch rows per lane. ``*_frac`` is a share in [0, 1]. Coefficients are
(L,) tensors; an ``epsilon`` of infinity means no clipping on that side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "ClipRange",
    "approx_kl_k3",
    "clipped_surrogate",
    "explained_variance",
    "normalize_advantages",
    "value_loss",
]


class ClipRange(NamedTuple):
    """The band [1 - low, 1 + high] that the probability ratio has no incentive to leave."""

    low: Tensor  # (L,) epsilon; from 1 on nothing is clipped below
    high: Tensor  # (L,) epsilon_high, equal to low unless asked otherwise


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, clip: ClipRange, dual_clip: Tensor | None = None
) -> Tensor:
    """Return PPO's pessimistic policy loss (L,) (arXiv:1707.06347, eq. 7), to be minimised.

    ``log_ratio`` is log pi_new - log pi_old, (L, B). With ``dual_clip`` c (L,) > 1 the objective of
    a negative advantage is bounded below by c * A (arXiv:1912.09729, eq. 5).
    """
    ratio = log_ratio.exp()
    clipped = torch.clamp(ratio, (1.0 - clip.low).unsqueeze(-1), (1.0 + clip.high).unsqueeze(-1))
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is not None:
        bound = dual_clip.unsqueeze(-1) * advantages
        objective = torch.where(advantages < 0.0, torch.maximum(objective, bound), objective)
    return -objective.mean(-1)


def value_loss(
    values: Tensor, old_values: Tensor, value_targets: Tensor, epsilon: Tensor | None = None
) -> Tensor:
    """Return half the mean squared error of the critic (L,), inputs (L, B).

    With ``epsilon`` (L,), the larger of the error and the error of a prediction held within
    ``epsilon`` of the old one (OpenAI baselines ppo2; detail 9 of "The 37 implementation details",
    which finds no benefit in it).
    """
    errors = (values - value_targets).square()
    if epsilon is not None:
        width = epsilon.unsqueeze(-1)
        held = old_values + torch.clamp(values - old_values, -width, width)
        errors = torch.maximum(errors, (held - value_targets).square())
    return 0.5 * errors.mean(-1)


def normalize_advantages(advantages: Tensor) -> Tensor:
    """Return (L, B) with each lane's mean 0 and unbiased standard deviation 1.

    A single row has no spread and is returned as it is. 1e-8 guards a constant minibatch, as in
    every public PPO (detail 7 of "The 37 implementation details").
    """
    if advantages.shape[-1] == 1:
        return advantages
    std, mean = torch.std_mean(advantages, -1, keepdim=True)
    return (advantages - mean) / (std + 1e-8)


def approx_kl_k3(log_ratio: Tensor) -> Tensor:
    """Return the low-variance, never negative estimate of KL(old || new) in nats, mean over B.

    http://joschu.net/blog/kl-approx.html, estimator k3 = (r - 1) - log r.
    """
    return (torch.expm1(log_ratio) - log_ratio).mean(-1)


def explained_variance(values: Tensor, value_targets: Tensor) -> Tensor:
    """Return 1 - Var(targets - values) / Var(targets) per lane (L,), NaN for constant targets.

    1 is a perfect critic, 0 one no better than a constant, below 0 worse than that.
    """
    variance = value_targets.var(-1, correction=0)
    explained = 1.0 - (value_targets - values).var(-1, correction=0) / variance
    return explained.masked_fill(variance == 0.0, torch.nan)
