"""Layers whose weights carry a lane axis: one network per lane, computed as one batched product.

Shapes: L = lanes, B = rows per lane, I = inputs, O = outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ppo_lab import random

__all__ = ["Initializer", "LaneLinear"]


class Initializer:
    """Draws initial weights: each lane's from its own seed, each layer's from its own counter."""

    def __init__(self, seeds: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        """Start with ``seeds`` (L,); weights are made on ``device``."""
        self.num_lanes = len(seeds)
        self.device, self.dtype = device, dtype
        keys = random.lane_keys(seeds.to(device), random.Stream.INIT)
        self._layer_keys: Iterator[Tensor] = (random.fold_in(keys, i) for i in range(1 << 30))

    def orthogonal(self, num_inputs: int, num_outputs: int, gain: float) -> Tensor:
        """Return (L, I, O) with orthonormal rows or columns times ``gain`` (arXiv:1312.6120).

        The sign of each column follows R's diagonal, so that the result is uniform over orthogonal
        matrices (arXiv:math-ph/0609050, section 5).
        """
        rows, columns = max(num_inputs, num_outputs), min(num_inputs, num_outputs)
        gaussian = random.normal(next(self._layer_keys), rows * columns)
        q, r = torch.linalg.qr(gaussian.unflatten(-1, (rows, columns)))
        q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        weight = q if num_inputs == rows else q.mT
        return (weight * gain).to(self.dtype).contiguous()

    def uniform(self, num_inputs: int, num_outputs: int) -> Tensor:
        """Return (L, I, O) uniform in ±1 / sqrt(I), torch.nn.Linear's default."""
        u = random.uniform(next(self._layer_keys), num_inputs * num_outputs)
        bound = 1.0 / math.sqrt(num_inputs)
        return ((2.0 * u - 1.0) * bound).unflatten(-1, (num_inputs, num_outputs)).to(self.dtype)


class LaneLinear(nn.Module):
    """y = x W + b for each lane: (L, B, I) to (L, B, O)."""

    weight: nn.Parameter  # (L, I, O)
    bias: nn.Parameter  # (L, 1, O)

    def __init__(self, weight: Tensor) -> None:
        """Take initial weights (L, I, O); biases start at 0."""
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(weight.new_zeros(weight.shape[0], 1, weight.shape[2]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for ``x`` (L, B, I)."""
        return torch.baddbmm(self.bias, x, self.weight)
