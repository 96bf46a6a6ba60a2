"""Diagnostics of how far an update moved from the policy that collected the data.

The clip fraction alone is not enough: without a clip it is 0 by definition, and it falls as epsilon
grows while the policy collapses. The ratio's extremes and histogram, k3 KL, the effective sample
size and the entropy show that. They are measured twice: as means over the update's minibatches, and
over the whole rollout after the last epoch.

Shapes: L = lanes, R = rows per lane, K = gradient steps of one update. Tensors stay on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.ppo.losses import ClipRange, approx_kl_k3

__all__ = [
    "NUM_RATIO_BINS",
    "RatioDiagnostics",
    "UpdateDiagnostics",
    "UpdateLog",
    "UpdateStep",
    "apply_target_kl",
    "clip_fractions",
    "ratio_diagnostics",
    "ratio_edges",
    "ratio_histogram",
]

NUM_RATIO_BINS = 64
_DECADES = 2.0  # bins span ratios from 1/100 to 100; the end bins count all beyond
_FIXED_WIDTH = 0.2  # PPO's usual epsilon: comparable between runs with any other


class RatioDiagnostics(NamedTuple):
    """Statistics of the probability ratios; every field (L,), ``*_frac`` a share of rows."""

    clip_frac: Tensor  # outside [1 - low, 1 + high]; 0 by definition where there is no clip
    clip_above_frac: Tensor  # above 1 + high
    clip_below_frac: Tensor  # below 1 - low
    cut_above_frac: Tensor  # above, with a positive advantage: the gradient is cut
    cut_below_frac: Tensor  # below, with a negative advantage: the gradient is cut
    pass_frac: Tensor  # outside, but with a gradient, which pulls the ratio back
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
    """Return the shares of rows outside the clip range (L,), by side and by effect on the gradient.

    ``log_ratio`` and ``advantages`` are (L, R), or (K, L, B) for K minibatches: then a mean over
    rows leaves (K, L).
    """
    ratio = log_ratio.exp()
    above = ratio > (1.0 + clip.high).unsqueeze(-1)
    below = ratio < (1.0 - clip.low).unsqueeze(-1)
    cut_above = above & (advantages > 0.0)
    cut_below = below & (advantages < 0.0)
    masks = torch.stack((above | below, above, below, cut_above, cut_below))
    names = "clip_frac", "clip_above_frac", "clip_below_frac", "cut_above_frac", "cut_below_frac"
    shares = dict(zip(names, masks.float().mean(-1).unbind(0)))
    with_gradient = shares["clip_frac"] - shares["cut_above_frac"] - shares["cut_below_frac"]
    return shares | {"pass_frac": with_gradient}


def ratio_diagnostics(log_ratio: Tensor, advantages: Tensor, clip: ClipRange) -> RatioDiagnostics:
    """Return statistics of ``log_ratio`` (L, R), log pi_new - log pi_old; ``advantages`` (L, R)."""
    num_rows = log_ratio.shape[-1]
    ordered = log_ratio.sort(-1).values
    ranks = [0, round(0.01 * (num_rows - 1)), round(0.99 * (num_rows - 1)), num_rows - 1]
    quantiles = (ordered[:, rank].exp() for rank in ranks)
    outside = (log_ratio.exp() - 1.0).abs() > _FIXED_WIDTH
    # (sum r)^2 / sum r^2 with r = exp(log_ratio), in logarithms: a huge ratio does not overflow.
    log_ess = 2.0 * log_ratio.logsumexp(-1) - (2.0 * log_ratio).logsumexp(-1)
    return RatioDiagnostics(
        **clip_fractions(log_ratio, advantages, clip),
        outside_0p2_frac=outside.float().mean(-1),
        **dict(zip(("ratio_min", "ratio_p01", "ratio_p99", "ratio_max"), quantiles)),
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


class UpdateDiagnostics(NamedTuple):
    """Means over the gradient steps that a lane took; every field (L,)."""

    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor  # nats
    grad_norm: Tensor  # before clipping, actor and critic together
    grad_norm_actor: Tensor | None  # if actor and critic are clipped separately
    grad_norm_critic: Tensor | None
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
    first_bad: Tensor
    """Index of the first loss or gradient norm that is not finite, -1 if all are. They are counted
    step by step: policy loss, value loss, norm (or that of the actor, that of the critic)."""


class UpdateStep(NamedTuple):
    """What one gradient step measured: views of the log, written in place."""

    log_ratios: Tensor  # (L, B)
    advantages: Tensor  # (L, B) as used
    policy_loss: Tensor  # (L,)
    value_loss: Tensor  # (L,)
    entropy: Tensor  # (L,)
    grad_norms: Tensor  # (G, L)
    active: Tensor  # (L,) bool

    def split(self, num_parts: int) -> list[UpdateStep]:
        """Return views of a minibatch's equal parts; the sums are common to all."""
        if num_parts == 1:
            return [self]
        parts = zip(self.log_ratios.chunk(num_parts, -1), self.advantages.chunk(num_parts, -1))
        return [self._replace(log_ratios=ratios, advantages=a) for ratios, a in parts]


class UpdateLog:
    """What every gradient step of an update measured.

    All K steps are allocated at once, so memory does not depend on how many are taken. A step's
    sums may come in parts, from micro-batches and from several passes.
    """

    def __init__(
        self, shape: Sequence[int], num_minibatches: int, num_clip_groups: int, like: Tensor
    ) -> None:
        """Allocate for permutations of ``shape`` (E, L, R), on the device of ``like``."""
        self._num_minibatches = num_minibatches
        num_epochs, num_lanes, num_rows = shape
        num_steps, num_batch_rows = num_epochs * num_minibatches, num_rows // num_minibatches
        each, rows = (num_steps, num_lanes), (num_steps, num_lanes, num_batch_rows)
        self._log = UpdateStep(  # (K, …)
            log_ratios=like.new_zeros(rows),
            advantages=like.new_zeros(rows),
            policy_loss=like.new_zeros(each),
            value_loss=like.new_zeros(each),
            entropy=like.new_zeros(each),
            grad_norms=like.new_zeros(num_steps, num_clip_groups, num_lanes),
            active=like.new_ones(each, dtype=torch.bool),
        )
        # All views at once cost less than one indexing per number and step.
        self.steps = [UpdateStep(*views) for views in zip(*(c.unbind(0) for c in self._log))]

    def means(self, clip: ClipRange) -> UpdateDiagnostics:
        """Return means over the K gradient steps in which a lane was active."""
        log, active = self._log, self._log.active
        num_active = active.sum(0)

        def mean(steps: Tensor) -> Tensor:
            return steps.masked_fill(~active, 0.0).sum(0) / num_active.clamp(min=1)

        grad_norms = log.grad_norms.unbind(1)  # G of (K, L)
        is_separate = len(grad_norms) == 2
        shares = clip_fractions(log.log_ratios, log.advantages, clip)
        taken = log.log_ratios.masked_fill(~active.unsqueeze(-1), 0.0)  # a ratio of 1 elsewhere
        return UpdateDiagnostics(
            policy_loss=mean(log.policy_loss),
            value_loss=mean(log.value_loss),
            entropy=mean(log.entropy),
            grad_norm=mean(torch.hypot(*grad_norms) if is_separate else grad_norms[0]),
            grad_norm_actor=mean(grad_norms[0]) if is_separate else None,
            grad_norm_critic=mean(grad_norms[1]) if is_separate else None,
            approx_kl=mean(approx_kl_k3(log.log_ratios)),
            old_approx_kl=mean(-log.log_ratios.mean(-1)),
            **{name: mean(share) for name, share in shares.items()},
            ratio_min=taken.amin((0, 2)).exp(),
            ratio_max=taken.amax((0, 2)).exp(),
            gradient_steps=num_active,
            epochs_done=num_active / self._num_minibatches,
            first_bad=self._first_bad(),
        )

    def _first_bad(self) -> Tensor:
        """See ``UpdateDiagnostics.first_bad``; steps that a lane did not take are left out."""
        log = self._log
        losses = torch.stack((log.policy_loss, log.value_loss), 1)
        numbers = torch.cat((losses, log.grad_norms), 1)  # (K, 2 + G, L)
        is_good = (numbers.isfinite() | ~log.active.unsqueeze(1)).flatten(0, 1)
        num_good = is_good.long().cumprod(0).sum(0)  # before the first that is not
        return num_good.masked_fill(num_good == len(is_good), -1)


def apply_target_kl(
    step: UpdateStep, previous: UpdateStep | None, target_kl: Tensor | None
) -> Tensor | None:
    """Write to ``step`` and return which lanes take it (L,); None without ``target_kl`` (L,).

    A lane stops before the first step whose whole minibatch has a k3 KL above 1.5 times its target,
    and takes no later step. Every pass gives the same result, as the log ratios are kept.
    """
    if target_kl is None:
        return None
    is_near = approx_kl_k3(step.log_ratios) <= 1.5 * target_kl
    step.active.copy_(is_near if previous is None else is_near & previous.active)
    return step.active
