"""Adam over lanes: each with its own learning rate, gradient clip, step count and on/off switch.

torch's optimizers take one learning rate for all rows of a tensor, so this one is ours. Small
parameters are kept side by side in *buckets*, one flat (L, D) tensor each, because a policy of ten
tiny tensors is otherwise bound by the number of operations, not by their size.

Shapes: L = lanes, D = parameters per lane in a bucket.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

__all__ = ["LaneAdam", "LaneOptimizer", "clip_coefficient"]

BETAS = (0.9, 0.999)
_BUCKET_SIZE = 1 << 22  # elements (16 MiB of float32): the largest gradient copied for flatness


class LaneOptimizer(ABC):
    """Steps every lane's parameters; a strategy decides where the moments live."""

    parameters: list[Parameter]

    def zero_grad(self) -> None:
        """Free the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @abstractmethod
    def step(self, *, lr: Tensor, max_grad_norm: Tensor, active: Tensor | None = None) -> Tensor:
        """Clip each lane's joint gradient norm, take one step, return the norms before clipping.

        All arguments and the result are (L,). Where ``active`` is false, parameters, moments and
        step count stand still; None for all lanes active.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return the moments and step counts."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""


def clip_coefficient(grad_norm: Tensor, max_grad_norm: Tensor) -> Tensor:
    """Return the factor (L,) that brings ``grad_norm`` (L,) down to ``max_grad_norm`` (L,).

    1e-6 as in ``torch.nn.utils.clip_grad_norm_``. An infinite limit never clips.
    """
    return (max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0)


class LaneAdam(LaneOptimizer):
    """Adam (arXiv:1412.6980, algorithm 1) on the training device.

    The parameters' storage is replaced by views of the buckets, so build the optimizer after the
    last ``.to(...)`` of the model.
    """

    def __init__(self, parameters: Iterable[Parameter], *, eps: float) -> None:
        """Take (L, …) ``parameters``; ``eps`` is added to the root of the second moment."""
        self.parameters = list(parameters)
        self._eps = eps
        self._buckets = [_Bucket(group) for group in _group_by_size(self.parameters)]
        num_lanes = self.parameters[0].shape[0]
        like = self.parameters[0].detach()
        self._num_steps = like.new_zeros(num_lanes)
        self._log_betas = like.new_tensor([[math.log(beta)] for beta in BETAS])  # (2, 1)

    @torch.no_grad()
    def step(self, *, lr: Tensor, max_grad_norm: Tensor, active: Tensor | None = None) -> Tensor:
        """See ``LaneOptimizer.step``."""
        gradients = [bucket.gradient() for bucket in self._buckets]
        norms = [torch.linalg.vector_norm(gradient, dim=-1) for gradient in gradients]
        grad_norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm(dim=0)
        scale = clip_coefficient(grad_norm, max_grad_norm).unsqueeze(-1)

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
        for bucket, gradient in zip(self._buckets, gradients):
            gradient.mul_(scale)
            if active is not None:
                # A switched-off lane may hold an infinite gradient, and 0 * inf would poison it.
                gradient.masked_fill_(~active.unsqueeze(-1), 0.0)
            bucket.exp_avg.lerp_(gradient, weight1)
            bucket.exp_avg_sq.lerp_(gradient.square_(), weight2)
            root = bucket.exp_avg_sq.sqrt().mul_(root_scale).add_(self._eps)
            bucket.weights.addcmul_(bucket.exp_avg / root, step_size)
        return grad_norm

    def state_dict(self) -> dict[str, Tensor]:
        """Return each bucket's moments and the lanes' step counts."""
        state = {"num_steps": self._num_steps}
        for i, bucket in enumerate(self._buckets):
            state[f"exp_avg.{i}"] = bucket.exp_avg
            state[f"exp_avg_sq.{i}"] = bucket.exp_avg_sq
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy ``state`` in place."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


class _Bucket:
    """Some parameters' weights and moments as flat (L, D) tensors."""

    def __init__(self, parameters: list[Parameter]) -> None:
        self.parameters = parameters
        weights = [p.detach().flatten(1) for p in parameters]
        self.weights = weights[0] if len(weights) == 1 else torch.cat(weights, -1)  # (L, D)
        sizes = [w.shape[-1] for w in weights]
        for parameter, part in zip(parameters, self.weights.split(sizes, -1)):
            parameter.data = part.view(parameter.shape)
        self.exp_avg = torch.zeros_like(self.weights)  # (L, D)
        self.exp_avg_sq = torch.zeros_like(self.weights)  # (L, D)

    def gradient(self) -> Tensor:
        """Return the bucket's gradient (L, D); a copy when it holds several parameters.

        A parameter that the loss does not reach has a gradient of zero.
        """
        parts = [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten(1) for p in self.parameters
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _group_by_size(parameters: list[Parameter]) -> list[list[Parameter]]:
    """Return runs of consecutive parameters of at most ``_BUCKET_SIZE`` elements together."""
    groups: list[list[Parameter]] = []
    room = 0
    for parameter in parameters:
        if not groups or parameter.numel() > room:
            groups.append([])
            room = _BUCKET_SIZE
        groups[-1].append(parameter)
        room -= parameter.numel()
    return groups
