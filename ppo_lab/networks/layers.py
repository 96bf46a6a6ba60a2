"""Layers whose weights have a lane axis: all lanes' networks run as one batched product.

Shapes: L = lanes, B = rows per lane, I = inputs, O = outputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppo_lab.utils import rng
from ppo_lab.utils.tracing import is_tracing

__all__ = ["Initializer", "LaneEmbedding", "LaneLinear", "quick_tanh"]

# 512 rows of 64: from this size on, torch.tanh costs more than a Python autograd function.
_MIN_NUMBERS = 1 << 15

_NUMBERS_AT_ONCE = 1 << 26  # drawn: their 64 random bits take 512 MiB
_LAYERS_AT_ONCE = 64  # keys derived


class _QuickTanh(torch.autograd.Function):
    """tanh(x) = 2 s(2x) - 1 with the logistic function s, computed in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        y = torch.mul(x, 2.0).sigmoid_()
        torch.add(y.new_full((), -1.0), y, alpha=2.0, out=y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradient, y)


def quick_tanh(x: Tensor) -> Tensor:
    """Return tanh(x), elementwise; of large float32 tensors on a CPU with an error below 2e-7.

    There torch.tanh takes several times as long as its exponential, and longer than the matrix
    products of a layer of 64. Compiled programs use ``compiler.decompositions.fast_tanh`` instead.
    """
    is_slow = x.numel() >= _MIN_NUMBERS and x.device.type == "cpu" and x.dtype is torch.float32
    if not is_slow or is_tracing():
        return torch.tanh(x)
    return _QuickTanh.apply(x)  # type: ignore[no-untyped-call]


class Initializer:
    """Draws initial weights as a function of the lane's seed and the layer's number."""

    def __init__(self, seeds: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        """Start at the first layer; ``seeds`` is (L,), weights are created on ``device``."""
        self.num_lanes = len(seeds)
        self.device, self.dtype = device, dtype
        keys = rng.lane_keys(seeds.to(device), rng.Stream.INIT)
        self._layer_keys = _keys_of_layers(keys)

    def orthogonal(self, num_inputs: int, num_outputs: int, gain: float) -> Tensor:
        """Return (L, I, O) with orthonormal rows or columns times ``gain`` (arXiv:1312.6120).

        Multiplying Q's columns by the signs of R's diagonal makes the result uniform over
        orthogonal matrices (arXiv:math-ph/0609050, section 5).
        """
        rows, columns = max(num_inputs, num_outputs), min(num_inputs, num_outputs)
        gaussian = rng.normal(next(self._layer_keys), rows * columns)
        q, r = torch.linalg.qr(gaussian.unflatten(-1, (rows, columns)))
        q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        weight = q if num_inputs == rows else q.mT
        return (weight * gain).to(self.dtype).contiguous()

    def uniform(self, num_inputs: int, num_outputs: int) -> Tensor:
        """Return (L, I, O) uniform in ±1 / sqrt(I), the default of torch.nn.Linear."""
        u = rng.uniform(next(self._layer_keys), num_inputs * num_outputs)
        bound = 1.0 / math.sqrt(num_inputs)
        return ((2.0 * u - 1.0) * bound).unflatten(-1, (num_inputs, num_outputs)).to(self.dtype)

    def normal(self, num_inputs: int, num_outputs: int, std: float) -> Tensor:
        """Return (L, I, O) normal with mean 0 and deviation ``std``, drawn in pieces."""
        keys, count = next(self._layer_keys), num_inputs * num_outputs
        weight = keys.new_empty(self.num_lanes, count, dtype=self.dtype)
        for start in range(0, count, _NUMBERS_AT_ONCE):
            piece = weight[:, start : start + _NUMBERS_AT_ONCE]
            piece.copy_(rng.normal(keys, piece.shape[1], start)).mul_(std)
        return weight.unflatten(-1, (num_inputs, num_outputs))


def _keys_of_layers(keys: Tensor) -> Iterator[Tensor]:
    """Yield keys (L,) for one layer after the other, computed for many layers at once."""
    for first in itertools.count(0, _LAYERS_AT_ONCE):
        numbers = torch.arange(first, first + _LAYERS_AT_ONCE, device=keys.device)
        yield from rng.fold_in(keys.unsqueeze(-1), numbers).unbind(-1)


class LaneLinear(nn.Module):
    """Maps (L, B, I) to (L, B, O) by y = x W + b, with each lane's own W and b."""

    weight: nn.Parameter  # (L, I, O)
    bias: nn.Parameter  # (L, 1, O)

    def __init__(self, weight: Tensor) -> None:
        """Use initial weights (L, I, O); biases start at 0."""
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(weight.new_zeros(weight.shape[0], 1, weight.shape[2]))

    def forward(self, x: Tensor) -> Tensor:
        """Return y (L, B, O) for ``x`` (L, B, I)."""
        return torch.baddbmm(self.bias, x, self.weight)


class LaneEmbedding(nn.Module):
    """Maps tokens (L, …) to vectors (L, …, O), with each lane's own table of V vectors."""

    weight: nn.Parameter  # (L, V, O)

    def __init__(self, weight: Tensor) -> None:
        """Use initial vectors (L, V, O)."""
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors of int64 ``tokens``."""
        num_lanes, num_tokens, _ = self.weight.shape
        if num_lanes > 1:
            first = torch.arange(0, num_lanes * num_tokens, num_tokens, device=tokens.device)
            tokens = tokens + first.view(-1, *[1] * (tokens.dim() - 1))
        return functional.embedding(tokens, self.weight.flatten(0, 1))
