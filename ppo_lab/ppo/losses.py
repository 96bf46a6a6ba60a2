"""PPO's loss functions and their kin: pure functions of tensors.

Shapes: L = lanes, B = minibatch rows per lane, T = steps of a sequence. ``*_frac`` is a share in
[0, 1]. Coefficients are (L,) tensors; an ``epsilon`` of infinity means no clipping on that side.
``weights`` (L, B) are those of ``ppo.row_weights``, by default 1; a row of weight 0 is dead.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.ppo.row_weights import rows_mean

__all__ = [
    "ClipRange",
    "PolicyLoss",
    "approx_kl_k3",
    "cispo",
    "clipped_surrogate",
    "explained_variance",
    "gspo",
    "normalize_advantages",
    "sequence_log_ratio",
    "standard_deviation",
    "value_loss",
]


class PolicyLoss(Enum):
    """Which objective the policy maximizes.

    clip: ``clipped_surrogate``, PPO's. gspo: ``gspo``, the same with the ratios of sequences.
    cispo: ``cispo``, the policy gradient with clipped importance weights.
    """

    clip = "clip"
    gspo = "gspo"
    cispo = "cispo"


class ClipRange(NamedTuple):
    """The interval [1 - low, 1 + high] to which the surrogate clips the probability ratio.

    A ``high`` above ``low`` is DAPO's clip-higher (arXiv:2503.14476, eq. 10: 0.2 and 0.28). Both
    are distances from 1, as in verl; TRL's CISPO takes epsilon_high as the largest ratio itself.
    """

    low: Tensor  # (L,) epsilon; 1 or more clips nothing below
    high: Tensor  # (L,) epsilon_high, by default equal to low

    def clamp(self, ratio: Tensor) -> Tensor:
        """Return ``ratio`` (L, B) clamped to the interval."""
        return torch.clamp(ratio, (1.0 - self.low).unsqueeze(-1), (1.0 + self.high).unsqueeze(-1))


def clipped_surrogate(
    log_ratio: Tensor,
    advantages: Tensor,
    clip: ClipRange,
    dual_clip: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return PPO's clipped policy loss (L,) (arXiv:1707.06347, eq. 7), to be minimized.

    ``log_ratio`` is log pi_new - log pi_old of the actions; it and ``advantages`` are (L, B).
    ``dual_clip`` c > 1, (L,), bounds the objective of a negative advantage A below by c * A
    (arXiv:1912.09729, eq. 5); verl's clip_ratio_c, 3 by default. TRL's delta limits the ratio
    before the minimum instead, for every advantage.

    Example:
        A ratio of 1.5 with advantage 1 counts as 1.2 if epsilon is 0.2:

        >>> clip = ClipRange(torch.tensor([0.2]), torch.tensor([0.2]))
        >>> clipped_surrogate(torch.tensor([[1.5]]).log(), torch.ones(1, 1), clip)
        tensor([-1.2000])
    """
    ratio = _of_live_rows(log_ratio, weights).exp()
    objective = torch.minimum(ratio * advantages, clip.clamp(ratio) * advantages)
    if dual_clip is not None:
        bound = dual_clip.unsqueeze(-1) * advantages
        objective = torch.where(advantages < 0.0, torch.maximum(objective, bound), objective)
    return -rows_mean(objective, weights)


def gspo(
    log_ratio: Tensor,
    advantages: Tensor,
    clip: ClipRange,
    dual_clip: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    num_steps: int,
) -> Tensor:
    """Return the loss (L,) of Group Sequence Policy Optimization (arXiv:2507.18071, eq. 5).

    ``clipped_surrogate`` with each step's ratio replaced by that of its whole sequence,
    s = exp(mean over the live steps of log r), in the form for steps (eqs. 13 and 14), as in verl:
    the value is s, the gradient s times that of the step's own log-probability. So advantages may
    differ between the steps of a sequence. The paper's mean over sequences is
    ``Aggregation.sequence_mean``; its epsilons are a thousandth of PPO's (3e-4 and 4e-4).

    Rows are sequence-major, B / T whole sequences of T = ``num_steps`` rows.
    """
    log_ratio = _of_live_rows(log_ratio, weights)
    sequences = sequence_log_ratio(log_ratio.detach(), weights, num_steps=num_steps)
    return clipped_surrogate(
        sequences + (log_ratio - log_ratio.detach()), advantages, clip, dual_clip, weights
    )


def sequence_log_ratio(log_ratio: Tensor, weights: Tensor | None, *, num_steps: int) -> Tensor:
    """Return the mean of ``log_ratio`` (L, B) over its sequence's live rows, at each of its rows.

    This is the logarithm of GSPO's sequence ratio (arXiv:2507.18071, eq. 7).
    """
    live = torch.ones_like(log_ratio) if weights is None else (weights != 0.0).to(log_ratio.dtype)
    live = live.unflatten(-1, (-1, num_steps))  # (L, B / T, T)
    parts = _of_live_rows(log_ratio, weights).unflatten(-1, (-1, num_steps))
    means = parts.sum(-1, keepdim=True) / live.sum(-1, keepdim=True).clamp(min=1.0)
    return means.expand_as(parts).flatten(-2)


def cispo(
    log_ratio: Tensor,
    advantages: Tensor,
    clip: ClipRange,
    dual_clip: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the loss (L,) of CISPO (arXiv:2506.13585, eqs. 4 and 5): -sg[clip(r)] * A * log pi.

    Every row has a gradient; the clip limits how much it counts. log pi_old, a constant, is
    subtracted from log pi: the same gradient, and a loss of 0 at a ratio of 1.

    Both sides are clipped, as the paper's equation and verl do; the paper's experiments and TRL
    have no lower bound, which is an ``epsilon`` of 1 or more here. ``dual_clip`` c, (L,), limits
    the ratio to c where the advantage is negative, its bound on the objective in
    ``clipped_surrogate``; verl and TRL ignore it here.
    """
    log_ratio = _of_live_rows(log_ratio, weights)
    importance = clip.clamp(log_ratio.detach().exp())
    if dual_clip is not None:
        bounded = torch.minimum(importance, dual_clip.unsqueeze(-1))
        importance = torch.where(advantages < 0.0, bounded, importance)
    return -rows_mean(importance * advantages * log_ratio, weights)


def _of_live_rows(log_ratio: Tensor, weights: Tensor | None) -> Tensor:
    """Return ``log_ratio`` with 0 in dead rows, whose ratio could overflow and spoil a gradient."""
    return log_ratio if weights is None else log_ratio.masked_fill(weights == 0.0, 0.0)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    value_targets: Tensor,
    epsilon: Tensor | None = None,
    weights: Tensor | None = None,
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
    return 0.5 * rows_mean(errors, weights)


def normalize_advantages(advantages: Tensor, live: Tensor | None = None) -> Tensor:
    """Return (L, B) with each lane's mean 0 and unbiased standard deviation 1.

    With ``live`` (L, B) bool, those of the live rows; dead ones become 0. A single row is returned
    as it is. 1e-8 avoids a division by 0 for a constant minibatch, as in every public PPO (detail 7
    of "The 37 implementation details").
    """
    if live is None:
        if advantages.shape[-1] == 1:
            return advantages
        std, mean = torch.std_mean(advantages, -1, keepdim=True)
        return (advantages - mean) / (std + 1e-8)
    centered, num_live = _centered(advantages, live)
    std = standard_deviation(advantages, live).unsqueeze(-1)
    alone = advantages.masked_fill(~live, 0.0)
    return torch.where(num_live == 1, alone, centered / (std + 1e-8))


def standard_deviation(x: Tensor, live: Tensor | None = None) -> Tensor:
    """Return the unbiased standard deviation (L,) of ``x`` (L, B), 0 for a single row.

    With ``live`` (L, B) bool, that of the live rows.
    """
    if live is None:
        return x.std(-1, correction=int(x.shape[-1] > 1))
    centered, num_live = _centered(x, live)
    return (centered.square().sum(-1) / (num_live.squeeze(-1) - 1).clamp(min=1)).sqrt()


def _centered(x: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x`` (L, B) less the mean of its live rows, 0 where dead, and their number (L, 1)."""
    num_live = live.sum(-1, keepdim=True)
    mean = x.masked_fill(~live, 0.0).sum(-1, keepdim=True) / num_live.clamp(min=1)
    return (x - mean).masked_fill(~live, 0.0), num_live


def approx_kl_k3(log_ratio: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the low-variance, never negative estimate of KL(old || new) in nats, mean over B.

    http://joschu.net/blog/kl-approx.html, estimator k3 = (r - 1) - log r.
    """
    return rows_mean(torch.expm1(log_ratio) - log_ratio, weights)


def explained_variance(
    values: Tensor, value_targets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return 1 - Var(targets - values) / Var(targets) per lane (L,), NaN for constant targets.

    1 is a perfect critic, 0 as good as a constant, below 0 worse. The mean of ``weights`` is 1.
    """
    variance = _variance(value_targets, weights)
    explained = 1.0 - _variance(value_targets - values, weights) / variance
    return explained.masked_fill(variance == 0.0, torch.nan)


def _variance(x: Tensor, weights: Tensor | None) -> Tensor:
    """Return the variance (L,) of the population ``x`` (L, B)."""
    if weights is None:
        return x.var(-1, correction=0)
    return rows_mean((x - rows_mean(x, weights).unsqueeze(-1)).square(), weights)
