"""Adam over lanes, each with its own learning rate, gradient clip, step count and active flag.

torch's optimizers have one learning rate for all rows of a tensor. Small parameters are stored in
*buckets*, one flat (L, D) tensor each, because a policy of ten small tensors is otherwise limited
by the number of operations.

Shapes: L = lanes, D = parameters per lane in a bucket, G = groups of parameters, each clipped by
its own norm.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

__all__ = [
    "BETAS",
    "Bucket",
    "LaneAdam",
    "LaneOptimizer",
    "StepSizes",
    "TrainTarget",
    "clip_coefficient",
    "group_by_size",
    "joint_norm",
]

BETAS = (0.9, 0.999)
_BUCKET_SIZE = 1 << 22  # elements (16 MiB of float32): the largest gradient that is copied


class StepSizes(NamedTuple):
    """What a step of Adam multiplies by in every bucket; tensors (L, 1)."""

    weight1: float | Tensor
    """Of the gradient in the first moment, 0 in lanes that are not active."""
    weight2: float | Tensor
    step_size: Tensor
    root_scale: Tensor
    active: Tensor | None  # (L,)


class TrainTarget(Enum):
    """What a pass over all minibatches trains."""

    both = "both"
    policy = "policy"
    values = "values"


class LaneOptimizer(ABC):
    """Optimizer of all lanes' parameters; a memory strategy decides where the moments are."""

    parameters: list[Parameter]
    num_clip_groups: int = 1
    """G: 1 with one norm over all parameters, 2 with one each for actor and critic."""

    def passes(self) -> Iterator[TrainTarget]:
        """Yield what to train in each pass of an update; between passes state may be moved."""
        yield TrainTarget.both

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients those of ``loss``."""
        loss.backward()

    def prepare_final_backward(self) -> None:  # noqa: B027 (a default, not an omission)
        """Announce that the next backward pass completes the gradients."""

    def zero_grad(self) -> None:
        """Free the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @abstractmethod
    def step(self, *, lr: Tensor, max_grad_norm: Tensor, active: Tensor | None = None) -> Tensor:
        """Clip each group's gradient norm in each lane, take one step; consumes the gradients.

        All arguments are (L,). Where ``active`` is false, parameters, moments and step count do not
        change; None for all lanes active. Returns the norms before clipping, (G, L); 0 for a group
        that this pass does not train.
        """

    def reset_lanes(self, lanes: Tensor) -> None:
        """Reset the moments and step counts of ``lanes`` (int64) only: here, of the only one."""
        assert len(lanes) == 1, "strategies that stack lanes have their own"
        with torch.no_grad():
            for tensor, _ in self.state_parts():
                tensor.zero_()

    @abstractmethod
    def state_parts(self) -> Iterator[tuple[Tensor, Parameter | None]]:
        """Yield moments and step counts, each with the parameter it belongs to if there is one."""

    def weights(self) -> list[Tensor]:
        """Return tensors (L, …) that hold all parameters, as few as there are."""
        return [parameter.detach() for parameter in self.parameters]

    def take_weights(self) -> None:  # noqa: B027 (a default, not an omission)
        """Take over weights that were written to the parameters; needed by copies of them."""


def clip_coefficient(grad_norm: Tensor, max_grad_norm: Tensor) -> Tensor:
    """Return the factor (L,) that reduces ``grad_norm`` (L,) to ``max_grad_norm`` (L,).

    1e-6 as in ``torch.nn.utils.clip_grad_norm_``. An infinite limit never clips.
    """
    return (max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0)


class LaneAdam(LaneOptimizer):
    """Adam (arXiv:1412.6980, algorithm 1) on the training device.

    The parameters' storage is replaced by views of the buckets, so build the optimizer after the
    last ``.to(...)`` of the model.
    """

    def __init__(
        self,
        *groups: Iterable[Parameter],
        eps: float,
        zeros: Callable[[Tensor], Tensor] = torch.zeros_like,
    ) -> None:
        """Take groups of (L, …) parameters, each clipped by its own norm.

        ``eps`` is added to the root of the second moment; ``zeros`` allocates the moments, given
        a tensor of their shape.
        """
        members = [list(group) for group in groups]
        self.parameters = [parameter for group in members for parameter in group]
        self.num_clip_groups = len(members)
        self._eps = eps
        self._groups = [[Bucket(part, zeros) for part in group_by_size(g)] for g in members]
        self._buckets = [bucket for group in self._groups for bucket in group]
        like = self.parameters[0].detach()
        self._num_steps = like.new_zeros(len(like))
        self._log_betas = like.new_tensor([[math.log(beta)] for beta in BETAS])  # (2, 1)

    @torch.no_grad()
    def step(self, *, lr: Tensor, max_grad_norm: Tensor, active: Tensor | None = None) -> Tensor:
        """See ``LaneOptimizer.step``."""
        gradients = self.take_gradients()
        norms = [
            joint_norm([torch.linalg.vector_norm(gradient, dim=-1) for gradient in group])
            for group in gradients
        ]  # G of (L,)
        self.apply(gradients, norms, lr=lr, max_grad_norm=max_grad_norm, active=active)
        return norms[0].unsqueeze(0) if len(norms) == 1 else torch.stack(norms)

    def take_gradients(self) -> list[list[Tensor]]:
        """Return the gradients (L, D) of each group's buckets."""
        return [[bucket.take_gradient() for bucket in group] for group in self._groups]

    def apply(
        self,
        gradients: list[list[Tensor]],
        norms: Iterable[Tensor],
        *,
        lr: Tensor,
        max_grad_norm: Tensor,
        active: Tensor | None,
    ) -> None:
        """Step with ``take_gradients``, which it consumes, clipped by the groups' norms (L,)."""
        sizes = self.begin_step(lr, active)
        for group, its_gradients, norm in zip(self._groups, gradients, norms):
            scale = clip_coefficient(norm, max_grad_norm).unsqueeze(-1)
            for bucket, gradient in zip(group, its_gradients):
                self.step_bucket(bucket, gradient, scale, sizes)

    def begin_step(self, lr: Tensor, active: Tensor | None) -> StepSizes:
        """Count a step of every active lane and return its sizes, equal for all buckets."""
        weight1: float | Tensor = 1.0 - BETAS[0]
        weight2: float | Tensor = 1.0 - BETAS[1]
        if active is None:
            self._num_steps += 1.0
        else:
            is_active = active.to(lr.dtype)
            self._num_steps += is_active
            lr = lr * is_active
            weight1, weight2 = (is_active.unsqueeze(-1) * weight for weight in (weight1, weight2))
        # 1 - beta^t without cancellation; before a lane's first step it is unused, so not 0.
        corrections = torch.expm1(self._num_steps * self._log_betas).neg_().clamp_(min=1e-12)
        step_size = (lr / corrections[0]).neg_().unsqueeze(-1)
        root_scale = corrections[1].rsqrt_().unsqueeze(-1)
        return StepSizes(weight1, weight2, step_size, root_scale, active)

    def step_bucket(
        self, bucket: Bucket, gradient: Tensor, scale: Tensor | None, sizes: StepSizes
    ) -> None:
        """Step one bucket with its gradient (L, D), which is consumed, times ``scale`` (L, 1)."""
        weight1, weight2, step_size, root_scale, active = sizes
        if scale is not None:
            gradient.mul_(scale)
        if active is not None:
            # An inactive lane may have an infinite gradient, and 0 * inf is NaN.
            gradient.masked_fill_(~active.unsqueeze(-1), 0.0)
        bucket.exp_avg.lerp_(gradient, weight1)
        bucket.exp_avg_sq.lerp_(gradient.square_(), weight2)
        # The gradient is used up: the rest of the arithmetic reuses its memory.
        root = torch.sqrt(bucket.exp_avg_sq, out=gradient)
        root.mul_(root_scale).add_(self._eps)
        bucket.weights.addcmul_(torch.div(bucket.exp_avg, root, out=root), step_size)

    @property
    def state_tensors(self) -> list[Tensor]:
        """All that a step changes: step counts (L,), each bucket's weights and moments (L, D).

        Setting them makes the next steps change other tensors; the model's parameters remain views
        of the former weights.
        """
        buckets = [(b.weights, b.exp_avg, b.exp_avg_sq) for b in self._buckets]
        return [self._num_steps, *(tensor for bucket in buckets for tensor in bucket)]

    @state_tensors.setter
    def state_tensors(self, tensors: Sequence[Tensor]) -> None:
        self._num_steps, *rest = tensors
        for i, bucket in enumerate(self._buckets):
            bucket.weights, bucket.exp_avg, bucket.exp_avg_sq = rest[3 * i : 3 * i + 3]

    def weights(self) -> list[Tensor]:
        """See ``LaneOptimizer.weights``."""
        return [bucket.weights for bucket in self._buckets]

    def split_weights(self) -> list[Tensor]:
        """Return views of the buckets' weights, in the order and shapes of ``parameters``."""
        return [part for bucket in self._buckets for part in bucket.split(bucket.weights)]

    @property
    def moments(self) -> list[Tensor]:
        """Every bucket's first and second moments (L, D); replaceable between steps."""
        return [m for bucket in self._buckets for m in (bucket.exp_avg, bucket.exp_avg_sq)]

    @moments.setter
    def moments(self, moments: list[Tensor]) -> None:
        for bucket, first, second in zip(self._buckets, moments[::2], moments[1::2]):
            bucket.exp_avg, bucket.exp_avg_sq = first, second

    def state_parts(self) -> Iterator[tuple[Tensor, Parameter | None]]:
        """See ``LaneOptimizer.state_parts``: a bucket's moments are those of its parameters."""
        yield self._num_steps, None
        for bucket in self._buckets:
            for moment in (bucket.exp_avg, bucket.exp_avg_sq):
                yield from zip(bucket.split(moment), bucket.parameters)

    def reset_lanes(self, lanes: Tensor) -> None:
        """See ``LaneOptimizer.reset_lanes``."""
        for tensor in (self._num_steps, *self.moments):
            tensor.index_fill_(0, lanes, 0.0)


class Bucket:
    """Some parameters' weights and moments as flat (L, D) tensors."""

    def __init__(self, parameters: list[Parameter], zeros: Callable[[Tensor], Tensor]) -> None:
        """Move parameters (L, ...) into one tensor; ``zeros`` allocates the moments."""
        self.parameters = parameters
        weights = [p.detach().flatten(1) for p in parameters]
        self.weights = weights[0] if len(weights) == 1 else torch.cat(weights, -1)  # (L, D)
        for parameter, part in zip(parameters, self.split(self.weights)):
            parameter.data = part
        self.exp_avg = zeros(self.weights)  # (L, D)
        self.exp_avg_sq = zeros(self.weights)  # (L, D)

    def split(self, tensor: Tensor) -> list[Tensor]:
        """Return views of ``tensor`` (L, D) in the parameters' shapes."""
        parts = tensor.split([parameter[0].numel() for parameter in self.parameters], -1)
        return [part.view(its.shape) for part, its in zip(parts, self.parameters)]

    def take_gradient(self) -> Tensor:
        """Return the bucket's gradient (L, D); a copy when it holds several parameters.

        The gradient of a parameter that the loss does not depend on is 0. What was copied is freed.
        """
        parts = [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten(1) for p in self.parameters
        ]
        if len(parts) == 1:
            return parts[0]
        for parameter in self.parameters:
            parameter.grad = None
        return torch.cat(parts, -1)


def joint_norm(norms: list[Tensor]) -> Tensor:
    """Return each lane's norm (L,) over parts with norms (L,)."""
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm(dim=0)


def group_by_size(parameters: list[Parameter], size: int | None = None) -> list[list[Parameter]]:
    """Group consecutive parameters, at most ``size`` elements each (default a bucket), or one."""
    groups: list[list[Parameter]] = []
    free = 0
    for parameter in parameters:
        if not groups or parameter.numel() > free:
            groups.append([])
            free = _BUCKET_SIZE if size is None else size
        groups[-1].append(parameter)
        free -= parameter.numel()
    return groups
