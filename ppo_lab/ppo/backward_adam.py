"""Adam within the backward pass: a gradient is freed as soon as its parameters have stepped.

The coefficient that clips a gradient's global norm needs all gradients, so there are two backward
passes through one graph: the first sums squares and frees each gradient, the second scales and
steps. The numbers are those of ``LaneAdam``, to the bit. Without a clip one pass is enough. What is
given up for the memory: a second backward pass, and activations that are kept until it.

No pass reads what it has overwritten: a parameter's gradient is complete only when every operation
that reads the parameter has been differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor
from torch.nn import Parameter

from ppo_lab.ppo.adam import Bucket, LaneAdam, clip_coefficient, joint_norm

__all__ = ["BackwardAdam"]


class BackwardAdam(LaneAdam):
    """``LaneAdam`` whose gradients exist one bucket at a time; shapes as there."""

    def __init__(
        self,
        *groups: Iterable[Parameter],
        eps: float,
        clips: bool,
        zeros: Callable[[Tensor], Tensor] = torch.zeros_like,
    ) -> None:
        """See ``LaneAdam``; ``clips`` is false if no lane's gradient is ever clipped."""
        super().__init__(*groups, eps=eps, zeros=zeros)
        self._clips = clips
        self._loss: Tensor | None = None  # whose gradients the next step takes
        self._norms: dict[Bucket, Tensor] = {}  # (L,) each

    def backward(self, loss: Tensor) -> None:
        """Keep ``loss`` for the step; take the gradients' norms if a clip needs them."""
        self._loss = loss
        if self._clips:
            self._norms = self._each_gradient(loss, _norm, keeps_graph=True)

    @torch.no_grad()
    def step(self, *, lr: Tensor, max_grad_norm: Tensor, active: Tensor | None = None) -> Tensor:
        """See ``LaneOptimizer.step``; differentiates the loss, and steps bucket by bucket."""
        assert self._loss is not None, "backward first"
        loss, self._loss = self._loss, None
        scales: dict[Bucket, Tensor] = {}
        if self._clips:
            for group, norm in zip(self._groups, self._group_norms()):
                scale = clip_coefficient(norm, max_grad_norm).unsqueeze(-1)
                scales |= dict.fromkeys(group, scale)
        sizes = self.begin_step(lr, active)

        def step_bucket(bucket: Bucket, gradient: Tensor) -> Tensor:
            norm = self._norms[bucket] if self._clips else _norm(bucket, gradient)
            self.step_bucket(bucket, gradient, scales.get(bucket), sizes)
            return norm

        self._norms = self._each_gradient(loss, step_bucket)
        return torch.stack(self._group_norms())

    def _group_norms(self) -> list[Tensor]:
        return [joint_norm([self._norms[bucket] for bucket in group]) for group in self._groups]

    def _each_gradient(
        self, loss: Tensor, use: Callable[[Bucket, Tensor], Tensor], *, keeps_graph: bool = False
    ) -> dict[Bucket, Tensor]:
        """Return ``use`` of each bucket and its gradient (L, D), called when that is complete.

        Hooks exist during the pass alone: observers, which have their own, see gradients first.
        """
        results: dict[Bucket, Tensor] = {}
        num_missing = {bucket: len(bucket.parameters) for bucket in self._buckets}

        @torch.no_grad()
        def finish(bucket: Bucket) -> None:
            gradient = bucket.take_gradient()
            for parameter in bucket.parameters:
                parameter.grad = None
            results[bucket] = use(bucket, gradient)

        def count(bucket: Bucket, _: Tensor) -> None:
            num_missing[bucket] -= 1
            if not num_missing[bucket]:
                finish(bucket)

        handles = [
            parameter.register_post_accumulate_grad_hook(partial(count, bucket))
            for bucket in self._buckets
            for parameter in bucket.parameters
        ]
        try:
            loss.backward(retain_graph=keeps_graph)
        finally:
            for handle in handles:
                handle.remove()
        for bucket in self._buckets:
            if bucket not in results:  # the loss does not depend on all of its parameters
                finish(bucket)
        return results


def _norm(_: Bucket, gradient: Tensor) -> Tensor:
    """Return each lane's norm (L,) of a gradient (L, D)."""
    return torch.linalg.vector_norm(gradient, dim=-1)
