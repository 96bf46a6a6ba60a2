"""PPO's loss functions: pure functions of tensors.

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
    """The interval [1 - low, 1 + high] to which the surrogate clips the probability ratio."""

    low: Tensor  # (L,) epsilon; 1 or more clips nothing below
    high: Tensor  # (L,) epsilon_high, by default equal to low


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, clip: ClipRange, dual_clip: Tensor | None = None
) -> Tensor:
    """Return PPO's clipped policy loss (L,) (arXiv:1707.06347, eq. 7), to be minimized.

    ``log_ratio`` is log pi_new - log pi_old of the actions; it and ``advantages`` are (L, B).
    ``dual_clip`` c > 1, (L,), bounds the objective of a negative advantage A below by c * A
    (arXiv:1912.09729, eq. 5).

    Example:
        A ratio of 1.5 with advantage 1 counts as 1.2 if epsilon is 0.2:

        >>> clip = ClipRange(torch.tensor([0.2]), torch.tensor([0.2]))
        >>> clipped_surrogate(torch.tensor([[1.5]]).log(), torch.ones(1, 1), clip)
        tensor([-1.2000])
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

    With ``epsilon`` (L,), the larger of the error and the error of a prediction clipped to
    ``epsilon`` around the old one (OpenAI baselines ppo2; detail 9 of "The 37 implementation
    details", which finds no benefit in it).
    """
    errors = (values - value_targets).square()
    if epsilon is not None:
        width = epsilon.unsqueeze(-1)
        clipped = old_values + torch.clamp(values - old_values, -width, width)
        errors = torch.maximum(errors, (clipped - value_targets).square())
    return 0.5 * errors.mean(-1)


def normalize_advantages(advantages: Tensor) -> Tensor:
    """Return (L, B) with each lane's mean 0 and unbiased standard deviation 1.

    A single row is returned as it is. 1e-8 avoids a division by 0 for a constant minibatch, as in
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

    1 is a perfect critic, 0 as good as a constant, below 0 worse.
    """
    variance = value_targets.var(-1, correction=0)
    explained = 1.0 - (value_targets - values).var(-1, correction=0) / variance
    return explained.masked_fill(variance == 0.0, torch.nan)
