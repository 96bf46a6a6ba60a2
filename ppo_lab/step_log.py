"""An update's numbers, gradient step by gradient step, kept on the device and summarised once.

Shapes: K = gradient steps of one update, L = lanes, B = rows per lane in a minibatch,
G = groups of parameters, each clipped by its own norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.diagnostics import clip_fractions
from ppo_lab.ppo import ClipRange, approx_kl_k3

__all__ = ["StepLog", "StepSlot", "UpdateDiagnostics", "stop_far_lanes"]


class UpdateDiagnostics(NamedTuple):
    """Means over the gradient steps that a lane really took; every field (L,)."""

    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor  # nats
    grad_norm: Tensor  # before clipping, actor and critic together
    grad_norm_actor: Tensor | None  # where each is clipped by its own norm
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

    def flat(self) -> list[Tensor]:
        """Return the tensors that there are, in order."""
        return [value for value in self if value is not None]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> UpdateDiagnostics:
        """Return what ``flat`` took apart."""
        if len(tensors) == len(cls._fields):
            return cls(*tensors)
        rest = iter(tensors)
        separate = ("grad_norm_actor", "grad_norm_critic")
        return cls(*(None if name in separate else next(rest) for name in cls._fields))  # type: ignore[arg-type]


class StepSlot(NamedTuple):
    """One gradient step's place in the log: views to write to."""

    log_ratios: Tensor  # (L, B)
    advantages: Tensor  # (L, B) as used
    policy_loss: Tensor  # (L,)
    value_loss: Tensor  # (L,)
    entropy: Tensor  # (L,)
    grad_norms: Tensor  # (G, L)
    active: Tensor  # (L,) bool


class StepLog:
    """Allocated whole before the first step, so that its memory does not depend on their number.

    What is added to a step may come in parts, from micro-batches and from several passes.
    """

    def __init__(
        self, num_steps: int, num_lanes: int, num_rows: int, num_clip_groups: int, like: Tensor
    ) -> None:
        """Make room for K = ``num_steps`` of B = ``num_rows``, on the device of ``like``."""
        self._log_ratios = like.new_zeros(num_steps, num_lanes, num_rows)  # (K, L, B)
        self._advantages = like.new_zeros(num_steps, num_lanes, num_rows)  # (K, L, B) as used
        self._policy_loss = like.new_zeros(num_steps, num_lanes)  # (K, L)
        self._value_loss = like.new_zeros(num_steps, num_lanes)  # (K, L)
        self._entropy = like.new_zeros(num_steps, num_lanes)  # (K, L)
        self._grad_norms = like.new_zeros(num_steps, num_clip_groups, num_lanes)  # (K, G, L)
        self._active = like.new_ones(num_steps, num_lanes, dtype=torch.bool)  # (K, L)
        columns = (
            self._log_ratios,
            self._advantages,
            self._policy_loss,
            self._value_loss,
            self._entropy,
            self._grad_norms,
            self._active,
        )
        # All views at once cost less than one indexing per number and step.
        self.steps = [StepSlot(*views) for views in zip(*(c.unbind(0) for c in columns))]

    def stop_far_lanes(self, step: int, target_kl: Tensor | None) -> Tensor | None:
        """Return which lanes take ``step`` (L,); None for all, where there is no ``target_kl``."""
        return stop_far_lanes(self.steps[step], self.steps[step - 1] if step else None, target_kl)

    def means(self, clip: ClipRange, num_minibatches: int) -> UpdateDiagnostics:
        """Return means over the K gradient steps in which a lane was active."""
        active, log_ratios = self._active, self._log_ratios
        num_active = active.sum(0)

        def mean(steps: Tensor) -> Tensor:
            return steps.masked_fill(~active, 0.0).sum(0) / num_active.clamp(min=1)

        grad_norms = self._grad_norms.unbind(1)  # G of (K, L)
        is_separate = len(grad_norms) == 2
        shares = clip_fractions(log_ratios, self._advantages, clip)
        taken = log_ratios.masked_fill(~active.unsqueeze(-1), 0.0)  # a ratio of 1 for the rest
        return UpdateDiagnostics(
            policy_loss=mean(self._policy_loss),
            value_loss=mean(self._value_loss),
            entropy=mean(self._entropy),
            grad_norm=mean(torch.hypot(*grad_norms) if is_separate else grad_norms[0]),
            grad_norm_actor=mean(grad_norms[0]) if is_separate else None,
            grad_norm_critic=mean(grad_norms[1]) if is_separate else None,
            approx_kl=mean(approx_kl_k3(log_ratios)),
            old_approx_kl=mean(-log_ratios.mean(-1)),
            **{name: mean(share) for name, share in shares.items()},
            ratio_min=taken.amin((0, 2)).exp(),
            ratio_max=taken.amax((0, 2)).exp(),
            gradient_steps=num_active,
            epochs_done=num_active / num_minibatches,
        )


def stop_far_lanes(
    slot: StepSlot, previous: StepSlot | None, target_kl: Tensor | None
) -> Tensor | None:
    """Note in ``slot`` and return which lanes take its step (L,); None without ``target_kl`` (L,).

    A lane stops before the first step whose whole minibatch shows a k3 KL above 1.5 times its
    target, for good. Every pass finds the same: the policy's log ratios are kept.
    """
    if target_kl is None:
        return None
    is_near = approx_kl_k3(slot.log_ratios) <= 1.5 * target_kl
    slot.active.copy_(is_near if previous is None else is_near & previous.active)
    return slot.active
