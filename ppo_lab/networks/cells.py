"""Recurrent cells over all steps of a sequence, with backward passes written by hand.

Autograd would record ten operations per step and add up the weights' gradient step by step. Here a
step backwards takes four to eight, and that gradient is one product at the end.

Shapes: T = steps, L = lanes, B = sequences per lane, H = size of the hidden state. Time comes
first, so that each step is contiguous: for several lanes a product is then twice as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppo_lab.utils.torch_private import FakeTensor

__all__ = ["gru_states", "lstm_states"]


def lstm_states(
    x: Tensor, keep: Tensor, weight: Tensor, h: Tensor, c: Tensor
) -> tuple[Tensor, ...]:
    """Return the hidden and cell states (T, L, B, H) of an LSTM after every step.

    ``x`` (T, L, B, 4 H) is the inputs' part of the gates, in the order output, input, forget,
    candidate; ``keep`` (T, L, B, 1) is 0 before the first step of an episode and 1 elsewhere;
    ``weight`` is (L, H, 4 H); ``h`` and ``c`` (L, B, H) are the states before the first step.
    The equations are those of torch.nn.LSTM.
    """
    return _Lstm.apply(x, keep, weight, h, c)  # type: ignore[no-untyped-call]


def gru_states(x: Tensor, keep: Tensor, weight: Tensor, h: Tensor) -> tuple[Tensor]:
    """Return the hidden states (T, L, B, H) of a GRU after every step.

    ``x`` (T, L, B, 4 H) is the inputs' part of the reset and update gates, the bias of the state's
    part of the candidate, and the inputs' part of the candidate; ``weight`` is (L, H, 3 H); the
    rest is as for ``lstm_states``. The equations are those of torch.nn.GRU: the reset gate
    multiplies the product of state and weights, not the state as in arXiv:1406.1078, eq. 8.
    """
    return (_Gru.apply(x, keep, weight, h),)  # type: ignore[no-untyped-call]


class _Lstm(torch.autograd.Function):
    """See ``lstm_states``."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        keep: Tensor,
        weight: Tensor,
        h: Tensor,
        c: Tensor,
    ) -> tuple[Tensor, Tensor]:
        size = h.shape[-1]
        gates = torch.empty_like(x, memory_format=torch.contiguous_format)
        kept_h, kept_c, hs, cs, tanh_cs = (x.new_empty(*x.shape[:-1], size) for _ in range(5))
        by_step = (x, keep, gates, gates[..., : 3 * size], *gates.chunk(4, -1))
        for step in _steps(*by_step, kept_h, kept_c, hs, cs, tanh_cs):
            x_t, keep_t, gates_t, sigmoids, output, input_, forget, candidate, *states = step
            h = torch.mul(h, keep_t, out=states[0])
            c = torch.mul(c, keep_t, out=states[1])
            torch.baddbmm(x_t, h, weight, out=gates_t)
            sigmoids.sigmoid_()
            candidate.tanh_()
            c = torch.mul(forget, c, out=states[3]).addcmul_(input_, candidate)
            h = torch.mul(output, torch.tanh(c, out=states[4]), out=states[2])
        ctx.save_for_backward(keep, weight, gates, kept_h, kept_c, tanh_cs)
        return hs, cs

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_hs: Tensor,
        grad_cs: Tensor,
    ) -> tuple[Tensor | None, ...]:
        keep, weight, gates, kept_h, kept_c, tanh_cs = ctx.saved_tensors
        output, input_, forget, candidate = gates.chunk(4, -1)
        # Of each gate's argument: d h (output) or d c (the others) with respect to it.
        slopes = torch.cat(
            (
                tanh_cs * output * (1.0 - output),
                candidate * input_ * (1.0 - input_),
                kept_c * forget * (1.0 - forget),
                input_ * (1.0 - candidate.square()),
            ),
            -1,
        )
        c_slopes = output * (1.0 - tanh_cs.square())  # d h with respect to c
        carried = forget * keep  # d c with respect to the c before
        weight_t = weight.mT.contiguous()
        grad_x = torch.empty_like(gates)
        dh, dc = torch.zeros_like(kept_h[0]), torch.zeros_like(kept_h[0])
        steps = _steps(grad_hs, grad_cs, slopes, c_slopes, carried, keep, grad_x)
        for grad_h, grad_c, slope, c_slope, carry, keep_t, grad in reversed(steps):
            dh = dh + grad_h
            dc = torch.addcmul(dc + grad_c, dh, c_slope)
            torch.cat((dh, dc, dc, dc), -1, out=grad).mul_(slope)
            dh = torch.bmm(grad, weight_t).mul_(keep_t)
            dc = dc * carry
        return grad_x, None, _weight_grad(kept_h, grad_x), dh, dc


class _Gru(torch.autograd.Function):
    """See ``gru_states``."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        keep: Tensor,
        weight: Tensor,
        h: Tensor,
    ) -> Tensor:
        size = h.shape[-1]
        kept_h, hs, candidates = (x.new_empty(*x.shape[:-1], size) for _ in range(3))
        gates = x.new_empty(*x.shape[:-1], 3 * size)
        by_step = (*x.split((3 * size, size), -1), keep, gates, gates[..., : 2 * size])
        for step in _steps(*by_step, *gates.chunk(3, -1), kept_h, hs, candidates):
            x_gates, x_candidate, keep_t, gates_t, sigmoids, reset, update, of_state, *outs = step
            h = torch.mul(h, keep_t, out=outs[0])
            torch.baddbmm(x_gates, h, weight, out=gates_t)
            sigmoids.sigmoid_()
            torch.addcmul(x_candidate, reset, of_state, out=outs[2]).tanh_()
            h = torch.lerp(outs[2], h, update, out=outs[1])
        ctx.save_for_backward(keep, weight, gates, kept_h, candidates)
        return hs

    @staticmethod
    def backward(ctx: Any, grad_hs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        keep, weight, gates, kept_h, candidates = ctx.saved_tensors
        reset, update, of_state = gates.chunk(3, -1)
        # Of each gate's argument: d h with respect to it.
        of_candidate = (1.0 - update) * (1.0 - candidates.square())
        slopes = torch.cat(
            (
                of_candidate * of_state * reset * (1.0 - reset),
                (kept_h - candidates) * update * (1.0 - update),
                of_candidate * reset,
            ),
            -1,
        )
        weight_t = weight.mT.contiguous()
        grad_gates, dhs = torch.empty_like(gates), torch.empty_like(kept_h)
        dh = torch.zeros_like(kept_h[0])
        steps = _steps(grad_hs, dhs, slopes, update, keep, grad_gates)
        for grad_h, dh_t, slope, update_t, keep_t, grad in reversed(steps):
            dh = torch.add(dh, grad_h, out=dh_t)
            torch.cat((dh, dh, dh), -1, out=grad).mul_(slope)
            dh = torch.baddbmm(dh * update_t, grad, weight_t).mul_(keep_t)
        grad_x = torch.cat((grad_gates, dhs * of_candidate), -1)
        return grad_x, None, _weight_grad(kept_h, grad_gates), dh


def _steps(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Return the views of each step of ``tensors`` (T, …), cheaper than an index in each step.

    In a forecast two steps do: each allocates what the first does.
    """
    steps = list(zip(*(tensor.unbind() for tensor in tensors)))
    return steps[:2] if isinstance(tensors[0], FakeTensor) else steps


def _weight_grad(states: Tensor, grads: Tensor) -> Tensor:
    """Return the gradient (L, H, …) of the weights that multiply ``states`` (T, L, B, H)."""
    states, grads = (tensor.transpose(0, 1).flatten(1, 2) for tensor in (states, grads))
    return torch.bmm(states.mT, grads)
