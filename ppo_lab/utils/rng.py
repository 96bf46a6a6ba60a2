"""Random numbers as a pure function of (lane seed, stream, counter).

A lane draws the same numbers alone and in a stack, and any number can be recomputed from its
counter: there is no generator state to save, share or synchronise.
The generator is SplitMix64 used as a counter-based hash: a 64-bit key per lane and stream, a Weyl
sequence over the counter, and Stafford's "Mix13" finaliser (Steele, Lea and Flood 2014,
"Fast splittable pseudorandom number generators", section 5; constants from there).

Shapes: L = lanes, K = numbers drawn per lane.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

__all__ = ["Stream", "bits", "fold_in", "lane_keys", "normal", "permutation", "uniform"]


def _signed(value: int) -> int:
    """Return an unsigned 64-bit constant as the int64 that holds the same bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


class Stream(IntEnum):
    """Purpose of the numbers; the streams of a lane are independent."""

    INIT = 1
    ACTION = 2
    ENV = 3
    SHUFFLE = 4
    EVAL = 5
    RESTART = 6


def _shift_right(x: Tensor, amount: int) -> Tensor:
    """Return the logical (zero-filling) right shift; torch's own shift copies the sign bit."""
    return (x >> amount) & ((1 << (64 - amount)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Return the SplitMix64 finaliser of int64 ``x``; multiplications wrap modulo 2^64."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _on_device(number: Tensor | int, keys: Tensor) -> Tensor:
    """Return ``number`` on the device of ``keys``, by a fill: a copy would synchronise."""
    return keys.new_full((), number) if isinstance(number, int) else number


def fold_in(keys: Tensor, data: Tensor | int) -> Tensor:
    """Derive new keys (L,) from ``keys`` (L,) and ``data``, (L,) or a number."""
    return _mix(_mix(keys + _GOLDEN_GAMMA) ^ _mix(_on_device(data, keys) + 1))


def lane_keys(seeds: Tensor, stream: Stream) -> Tensor:
    """Return one int64 key per lane (L,) for ``stream``, from the lanes' int64 seeds (L,)."""
    return fold_in(_mix(seeds + _GOLDEN_GAMMA), int(stream))


def bits(keys: Tensor, count: int, start: Tensor | int = 0) -> Tensor:
    """Return (L, K) int64 of 64 random bits; number k of a lane has counter ``start + k``."""
    counters = torch.arange(1, count + 1, device=keys.device) + _on_device(start, keys).view(-1, 1)
    return _mix(keys.unsqueeze(-1) + counters * _GOLDEN_GAMMA)


def uniform(
    keys: Tensor, count: int, start: Tensor | int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return (L, K) numbers uniform in the open interval (0, 1), on a grid of 2^-23.

    The grid is offset by half a step, so that neither 0 nor 1 occurs and logarithms are finite;
    its 2^23 points and their offset are exact in float32 (24 bits of significand).
    """
    return (_shift_right(bits(keys, count, start), 41).to(dtype) + 0.5) * 2.0**-23


def normal(
    keys: Tensor, count: int, start: Tensor | int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return (L, K) standard normal numbers by the inverse error function of ``uniform``."""
    return torch.erfinv(2.0 * uniform(keys, count, start, dtype) - 1.0) * math.sqrt(2.0)


def permutation(keys: Tensor, count: int) -> Tensor:
    """Return one permutation of 0 .. K-1 per lane, (L, K) int64.

    Example:
        >>> keys = lane_keys(torch.tensor([1, 2]), Stream.SHUFFLE)
        >>> permutation(keys, 4).sort(-1).values
        tensor([[0, 1, 2, 3],
                [0, 1, 2, 3]])
    """
    return bits(keys, count).argsort(-1)
