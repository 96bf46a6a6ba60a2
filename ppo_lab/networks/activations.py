"""Nonlinearities, where torch's own are slow.

Shapes: L = lanes, B = rows per lane, H = features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ppo_lab.tracing import is_tracing

__all__ = ["quick_tanh"]

_MIN_LANE_NUMBERS = 1 << 13
"""Numbers per lane from which the library's tanh costs more than a Python function beside it: 128
rows of 64. Per lane, so that a lane is computed alike whatever stack it is in."""


class _QuickTanh(torch.autograd.Function):
    """2 / (1 + exp(-2x)) - 1, in one piece of memory."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        y = torch.mul(x, 2.0).sigmoid_().mul_(2.0).sub_(1.0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.ops.aten.tanh_backward(gradient, y)


def quick_tanh(x: Tensor) -> Tensor:
    """Return tanh(x) of (L, B, H), in float32 on a CPU to 2e-7.

    The library's function takes several times as long as its exponential, and longer than the
    products of a layer of 64. A program has its own way (``ppo_lab.programs.fast_tanh``).
    """
    is_slow = (
        x.device.type == "cpu"
        and x.dtype is torch.float32
        and x.shape[-2] * x.shape[-1] >= _MIN_LANE_NUMBERS
    )
    if not is_slow or is_tracing():
        return torch.tanh(x)
    return _QuickTanh.apply(x)  # type: ignore[no-untyped-call]
