"""Diagnostics of how far an update moved from the policy that collected the data.

The clip fraction alone is not enough: without a clip it is 0 by definition, and it falls as epsilon
grows while the policy collapses. The ratio's extremes and histogram, k3 KL, the effective sample
size and the entropy show that. They are measured twice: as means over the update's minibatches, and
over the whole rollout after the last epoch.

Where ``live`` rows are given, all are statistics of these, each row counting the same whatever the
losses' aggregation is. Every lane must have at least one.

Shapes: L = lanes, R = rows per lane, K = gradient steps of one update. Tensors stay on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.ppo.losses import ClipRange, approx_kl_k3, sequence_log_ratio
from ppo_lab.ppo.rollout import RolloutRows
from ppo_lab.ppo.row_weights import live_weights, rows_mean

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
    cut_above_frac: Tensor  # above, with a positive advantage: the gradient is cut (not by CISPO)
    cut_below_frac: Tensor  # below, with a negative advantage: the gradient is cut (not by CISPO)
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


def clip_fractions(
    log_ratio: Tensor,
    advantages: Tensor,
    clip: ClipRange,
    weights: Tensor | None = None,
    *,
    clipped_steps: int = 1,
) -> dict[str, Tensor]:
    """Return the shares of rows outside the clip range (L,), by side and by effect on the gradient.

    ``log_ratio``, ``advantages`` and ``weights`` are (L, R), or (K, L, B) for K minibatches: then a
    mean over rows leaves (K, L). GSPO clips the ratios of sequences of ``clipped_steps`` rows.
    """
    if clipped_steps > 1:
        log_ratio = sequence_log_ratio(log_ratio, weights, num_steps=clipped_steps)
    ratio = log_ratio.exp()
    above = ratio > (1.0 + clip.high).unsqueeze(-1)
    below = ratio < (1.0 - clip.low).unsqueeze(-1)
    cut_above = above & (advantages > 0.0)
    cut_below = below & (advantages < 0.0)
    masks = torch.stack((above | below, above, below, cut_above, cut_below))
    names = "clip_frac", "clip_above_frac", "clip_below_frac", "cut_above_frac", "cut_below_frac"
    shares = dict(zip(names, rows_mean(masks.float(), weights).unbind(0)))
    with_gradient = shares["clip_frac"] - shares["cut_above_frac"] - shares["cut_below_frac"]
    return shares | {"pass_frac": with_gradient}


def ratio_diagnostics(
    log_ratio: Tensor,
    advantages: Tensor,
    clip: ClipRange,
    live: Tensor | None = None,
    *,
    clipped_steps: int = 1,
) -> RatioDiagnostics:
    """Return statistics of ``log_ratio`` (L, R), log pi_new - log pi_old.

    ``advantages`` and ``live``, bool, are (L, R); see ``clip_fractions`` for ``clipped_steps``.
    """
    weights, counted = None, log_ratio
    num_rows: Tensor | int = log_ratio.shape[-1]
    if live is not None:
        weights, num_rows = live_weights(live), live.sum(-1)
        counted = log_ratio.masked_fill(~live, -math.inf)  # a ratio of 0 adds nothing
    outside = (log_ratio.exp() - 1.0).abs() > _FIXED_WIDTH
    # (sum r)^2 / sum r^2 with r = exp(log_ratio), in logarithms: a huge ratio does not overflow.
    log_ess = 2.0 * counted.logsumexp(-1) - (2.0 * counted).logsumexp(-1)
    quantiles = (q.exp() for q in _extremes(log_ratio, live))
    return RatioDiagnostics(
        **clip_fractions(log_ratio, advantages, clip, weights, clipped_steps=clipped_steps),
        outside_0p2_frac=rows_mean(outside.float(), weights),
        **dict(zip(("ratio_min", "ratio_p01", "ratio_p99", "ratio_max"), quantiles)),
        kl_k1=-rows_mean(log_ratio, weights),
        kl_k2=0.5 * rows_mean(log_ratio.square(), weights),
        kl_k3=approx_kl_k3(log_ratio, weights),
        ess_frac=log_ess.exp() / num_rows,
    )


def _extremes(x: Tensor, live: Tensor | None) -> list[Tensor]:
    """Return minimum, 1st and 99th percentile (nearest rank) and maximum of ``x`` (L, R), (L,)."""
    quantiles = 0.0, 0.01, 0.99, 1.0
    if live is None:
        ordered, last = x.sort(-1).values, x.shape[-1] - 1
        return [ordered[:, round(quantile * last)] for quantile in quantiles]
    # Dead rows are behind the live ones; the ranks are on the device, as they differ by lane.
    ordered, last_rank = x.masked_fill(~live, math.inf).sort(-1).values, live.sum(-1) - 1
    ranks = torch.stack([(quantile * last_rank.double()).round() for quantile in quantiles], -1)
    return list(ordered.gather(-1, ranks.long().clamp(min=0)).unbind(-1))


def ratio_edges() -> list[float]:
    """Return the 65 edges of the ratio histogram's log-spaced bins, from 0.01 to 100."""
    width = 2.0 * _DECADES / NUM_RATIO_BINS
    return [10.0 ** (-_DECADES + width * i) for i in range(NUM_RATIO_BINS + 1)]


def ratio_histogram(log_ratio: Tensor, live: Tensor | None = None) -> Tensor:
    """Return counts (L, 64) of the ratios exp(``log_ratio``), (L, R); NaN counts as 1."""
    limit = _DECADES * math.log(10.0)
    position = (log_ratio.nan_to_num(0.0) + limit) * (NUM_RATIO_BINS / (2.0 * limit))
    bins = position.clamp(0, NUM_RATIO_BINS - 1).long()
    counts = torch.zeros(log_ratio.shape[0], NUM_RATIO_BINS, device=log_ratio.device)
    one_each = torch.ones_like(position, dtype=counts.dtype) if live is None else live.float()
    return counts.scatter_add_(-1, bins, one_each)


class UpdateDiagnostics(NamedTuple):
    """Means over the gradient steps that a lane took; every field (L,).

    Losses are as they were minimized. Entropy, KL and the shares are means over all rows of these
    steps, each counting the same.
    """

    policy_loss: Tensor
    value_loss: Tensor | None  # None without a critic
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
    step by step: policy loss, value loss (if any), norm (or that of the actor, that of the
    critic)."""


class UpdateStep(NamedTuple):
    """What one gradient step measured: views of the log, written in place."""

    log_ratios: Tensor  # (L, B)
    advantages: Tensor  # (L, B) as used
    policy_loss: Tensor  # (L,)
    value_loss: Tensor | None  # (L,); None without a critic
    entropy: Tensor  # (L,) mean over rows with ``live_weights``
    grad_norms: Tensor  # (G, L)
    active: Tensor  # (L,) bool
    live_weights: Tensor | None  # (L, B) equal for live rows, of mean 1; None if all are live

    def begin(self, advantages: Tensor, live: Tensor | None) -> None:
        """Write the whole minibatch's ``advantages`` and weights of ``live`` rows, both (L, B)."""
        self.advantages.copy_(advantages)
        if self.live_weights is not None:
            assert live is not None
            self.live_weights.copy_(live_weights(live))

    def split(self, num_parts: int) -> list[UpdateStep]:
        """Return views of a minibatch's equal parts; the sums are common to all."""
        if num_parts == 1:
            return [self]
        rows = {"log_ratios": self.log_ratios, "advantages": self.advantages}
        if self.live_weights is not None:
            rows["live_weights"] = self.live_weights
        parts = zip(*(column.chunk(num_parts, -1) for column in rows.values()))
        return [self._replace(**dict(zip(rows, part))) for part in parts]


class UpdateLog:
    """What every gradient step of an update measured.

    All K steps are allocated at once, so memory does not depend on how many are taken. A step's
    sums may come in parts, from micro-batches and from several passes.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_minibatches: int,
        num_clip_groups: int,
        like: Tensor,
        *,
        has_critic: bool = True,
        has_dead_rows: bool = False,
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
            value_loss=like.new_zeros(each) if has_critic else None,
            entropy=like.new_zeros(each),
            grad_norms=like.new_zeros(num_steps, num_clip_groups, num_lanes),
            active=like.new_ones(each, dtype=torch.bool),
            live_weights=like.new_zeros(rows) if has_dead_rows else None,
        )
        # All views at once cost less than one indexing per number and step.
        views = (repeat(None) if c is None else c.unbind(0) for c in self._log)
        self.steps = [UpdateStep._make(step) for step in zip(*views)]

    @classmethod
    def of(
        cls, rows: RolloutRows, permutations: Tensor, num_minibatches: int, num_clip_groups: int
    ) -> UpdateLog:
        """Allocate for an update from ``rows`` in the order of ``permutations`` (E, L, R)."""
        return cls(
            permutations.shape,
            num_minibatches,
            num_clip_groups,
            like=rows.advantages,
            has_critic=rows.values is not None,
            has_dead_rows=rows.live is not None,
        )

    def means(self, clip: ClipRange, *, clipped_steps: int = 1) -> UpdateDiagnostics:
        """Return means over the K gradient steps in which a lane was active.

        See ``clip_fractions`` for ``clipped_steps``.
        """
        log, active, weights = self._log, self._log.active, self._log.live_weights
        num_active, not_active = active.sum(0), ~active
        # (K, L) how much the mean over a step's rows counts: as often as it has live ones.
        num_live = active if weights is None else (weights > 0.0).sum(-1) * active
        by_step, by_row = ((counts, counts.sum(0).clamp(min=1)) for counts in (active, num_live))

        def mean(steps: Tensor, by: tuple[Tensor, Tensor] = by_step) -> Tensor:
            counts, total = by
            return (steps.masked_fill(not_active, 0.0) * counts).sum(0) / total

        grad_norms = log.grad_norms.unbind(1)  # G of (K, L)
        is_separate = len(grad_norms) == 2
        log_ratios = log.log_ratios
        shares = clip_fractions(
            log_ratios, log.advantages, clip, weights, clipped_steps=clipped_steps
        )
        lowest, highest = self._extremes()
        return UpdateDiagnostics(
            policy_loss=mean(log.policy_loss),
            value_loss=None if log.value_loss is None else mean(log.value_loss),
            entropy=mean(log.entropy, by_row),
            grad_norm=mean(torch.hypot(*grad_norms) if is_separate else grad_norms[0]),
            grad_norm_actor=mean(grad_norms[0]) if is_separate else None,
            grad_norm_critic=mean(grad_norms[1]) if is_separate else None,
            approx_kl=mean(approx_kl_k3(log_ratios, weights), by_row),
            old_approx_kl=mean(-rows_mean(log_ratios, weights), by_row),
            **{name: mean(share, by_row) for name, share in shares.items()},
            ratio_min=lowest.exp(),
            ratio_max=highest.exp(),
            gradient_steps=num_active,
            epochs_done=num_active / self._num_minibatches,
            first_bad=self._first_bad(),
        )

    def _extremes(self) -> tuple[Tensor, Tensor]:
        """Return the smallest and largest log ratio (L,) of live rows; 0 for steps not taken."""
        active, weights = self._log.active.unsqueeze(-1), self._log.live_weights
        taken = self._log.log_ratios.masked_fill(~active, 0.0)
        if weights is None:
            return taken.amin((0, 2)), taken.amax((0, 2))
        dead = (weights == 0.0) & active
        least, most = (taken.masked_fill(dead, fill) for fill in (math.inf, -math.inf))
        return least.amin((0, 2)), most.amax((0, 2))

    def _first_bad(self) -> Tensor:
        """See ``UpdateDiagnostics.first_bad``; steps that a lane did not take are left out."""
        log = self._log
        losses = [loss for loss in (log.policy_loss, log.value_loss) if loss is not None]
        numbers = torch.cat((torch.stack(losses, 1), log.grad_norms), 1)  # (K, 2 + G, L)
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
    is_near = approx_kl_k3(step.log_ratios, step.live_weights) <= 1.5 * target_kl
    step.active.copy_(is_near if previous is None else is_near & previous.active)
    return step.active
