"""The numbers that tell whether an update stayed near the policy that collected the data.

The clip fraction alone is blind where it is needed most: without a clip it is 0 by definition, and
it falls as epsilon grows while the policy dies. The ratio's extremes and histogram, k3 KL, the
effective sample size and the entropy show it. They are measured twice: as means over the update's
minibatches, and over the whole rollout after the last epoch.

Shapes: L = lanes, R = rows per lane, K = gradient steps of one update. Tensors stay on the device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.ppo import ClipRange, approx_kl_k3

__all__ = [
    "NUM_RATIO_BINS",
    "RatioDiagnostics",
    "clip_fractions",
    "ratio_diagnostics",
    "ratio_edges",
    "ratio_histogram",
]

NUM_RATIO_BINS = 64
_DECADES = 2.0  # bins span ratios from 1/100 to 100; what lies beyond is counted in the end bins
_FIXED_WIDTH = 0.2  # PPO's usual epsilon: a yardstick that does not move with the one in use


class RatioDiagnostics(NamedTuple):
    """What the probability ratios say; every field (L,), ``*_frac`` a share of rows."""

    clip_frac: Tensor  # outside [1 - low, 1 + high]; 0 by definition where there is no clip
    clip_above_frac: Tensor  # above 1 + high
    clip_below_frac: Tensor  # below 1 - low
    cut_above_frac: Tensor  # above, with a positive advantage: the gradient is cut
    cut_below_frac: Tensor  # below, with a negative advantage: the gradient is cut
    pass_frac: Tensor  # outside, but the gradient still flows (it pulls the ratio back)
    outside_0p2_frac: Tensor  # outside [0.8, 1.2] whatever epsilon is: comparable between runs
    ratio_min: Tensor
    ratio_p01: Tensor
    ratio_p99: Tensor
    ratio_max: Tensor
    kl_k1: Tensor  # nats, mean(-log r); may be negative
    kl_k2: Tensor  # nats, mean((log r)^2 / 2)
    kl_k3: Tensor  # nats, mean(r - 1 - log r); never negative, the one to watch
    ess_frac: Tensor  # effective sample size of importance weights r, as a share of the rows


def clip_fractions(log_ratio: Tensor, advantages: Tensor, clip: ClipRange) -> dict[str, Tensor]:
    """Return the shares of rows outside the clip range (L,), by side and by fate of the gradient.

    ``log_ratio`` and ``advantages`` are (L, R), or (K, L, B) for K minibatches: then a mean over
    rows leaves (K, L).
    """
    ratio = log_ratio.exp()
    above = ratio > (1.0 + clip.high).unsqueeze(-1)
    below = ratio < (1.0 - clip.low).unsqueeze(-1)
    cut_above = above & (advantages > 0.0)
    cut_below = below & (advantages < 0.0)
    masks = torch.stack((above | below, above, below, cut_above, cut_below))
    shares = masks.float().mean(-1).unbind(0)
    clip_frac, clip_above_frac, clip_below_frac, cut_above_frac, cut_below_frac = shares
    return {
        "clip_frac": clip_frac,
        "clip_above_frac": clip_above_frac,
        "clip_below_frac": clip_below_frac,
        "cut_above_frac": cut_above_frac,
        "cut_below_frac": cut_below_frac,
        "pass_frac": clip_frac - cut_above_frac - cut_below_frac,
    }


def ratio_diagnostics(log_ratio: Tensor, advantages: Tensor, clip: ClipRange) -> RatioDiagnostics:
    """Return what ``log_ratio`` (L, R) = log pi_new - log pi_old shows; ``advantages`` (L, R)."""
    num_rows = log_ratio.shape[-1]
    ordered = log_ratio.sort(-1).values
    ranks = [0, round(0.01 * (num_rows - 1)), round(0.99 * (num_rows - 1)), num_rows - 1]
    ratio_min, ratio_p01, ratio_p99, ratio_max = (ordered[:, rank].exp() for rank in ranks)
    outside = (log_ratio.exp() - 1.0).abs() > _FIXED_WIDTH
    # (sum r)^2 / sum r^2 with r = exp(log_ratio), in logarithms: a huge ratio does not overflow.
    log_ess = 2.0 * log_ratio.logsumexp(-1) - (2.0 * log_ratio).logsumexp(-1)
    return RatioDiagnostics(
        **clip_fractions(log_ratio, advantages, clip),
        outside_0p2_frac=outside.float().mean(-1),
        ratio_min=ratio_min,
        ratio_p01=ratio_p01,
        ratio_p99=ratio_p99,
        ratio_max=ratio_max,
        kl_k1=-log_ratio.mean(-1),
        kl_k2=0.5 * log_ratio.square().mean(-1),
        kl_k3=approx_kl_k3(log_ratio),
        ess_frac=log_ess.exp() / num_rows,
    )


def ratio_edges() -> list[float]:
    """Return the 65 edges of the ratio histogram's log-spaced bins, from 0.01 to 100."""
    width = 2.0 * _DECADES / NUM_RATIO_BINS
    return [10.0 ** (-_DECADES + width * i) for i in range(NUM_RATIO_BINS + 1)]


def ratio_histogram(log_ratio: Tensor) -> Tensor:
    """Return counts (L, 64) of the ratios exp(``log_ratio``), (L, R); NaN counts as 1."""
    limit = _DECADES * math.log(10.0)
    position = (log_ratio.nan_to_num(0.0) + limit) * (NUM_RATIO_BINS / (2.0 * limit))
    bins = position.clamp(0, NUM_RATIO_BINS - 1).long()
    counts = torch.zeros(log_ratio.shape[0], NUM_RATIO_BINS, device=log_ratio.device)
    return counts.scatter_add_(-1, bins, torch.ones_like(position, dtype=counts.dtype))
