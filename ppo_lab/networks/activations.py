"""Nonlinearities, where torch's own are slow.

Shapes: L = lanes, B = rows per lane, H = features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppo_lab.tracing import is_tracing

__all__ = ["quick_tanh"]

_MIN_NUMBERS = 1 << 15
"""From here, 512 rows of 64, the library's tanh costs more than a Python function beside it."""


class _QuickTanh(torch.autograd.Function):
    """tanh(x) = 2 s(2x) - 1 with the logistic function s, in one piece of memory."""

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
    """Return tanh(x) of (L, B, H), for many numbers in float32 on a CPU to 2e-7.

    There the library's function takes several times as long as its exponential, and longer than
    the products of a layer of 64. A program has its own way (``ppo_lab.compiler.decompositions.fast_tanh``).
    """
    is_slow = x.numel() >= _MIN_NUMBERS and x.device.type == "cpu" and x.dtype is torch.float32
    if not is_slow or is_tracing():
        return torch.tanh(x)
    return _QuickTanh.apply(x)  # type: ignore[no-untyped-call]
