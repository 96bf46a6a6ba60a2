"""Replacements of operations whose library functions are slow on a CPU.

Shapes: L = lanes, M x K and K x N = the matrices of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["DECOMPOSITIONS", "fast_tanh", "narrow_baddbmm", "narrow_bmm"]


def fast_tanh(x: Tensor) -> Tensor:
    """Return tanh(x) in float32 to 4e-7, from multiplications and one division.

    The library function takes longer than the matrix products of a policy of 64 units. The
    coefficients are those of Eigen's rational approximation (MathFunctionsImpl.h,
    ``generic_fast_tanh_float``), which XLA also uses. Other types use the library function.
    """
    if x.dtype is not torch.float32:
        return torch.tanh(x)
    x = x.clamp(-_TANH_LIMIT, _TANH_LIMIT)
    square = x * x
    return x * _polynomial(square, _TANH_NUMERATOR) / _polynomial(square, _TANH_DENOMINATOR)


_TANH_LIMIT = 7.90531110763549805  # where tanh rounds to 1
_TANH_NUMERATOR = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_DENOMINATOR = (
    1.19825839466702e-06,
    1.18534705686654e-04,
    2.26843463243900e-03,
    4.89352518554385e-03,
)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Return the polynomial with ``coefficients``, highest power first (Horner's scheme)."""
    total = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        total = total * x + coefficient
    return total


def narrow_bmm(x: Tensor, y: Tensor) -> Tensor:
    """Return the products of ``x`` (L, M, K) and ``y`` (L, K, N) where N or K is small.

    A policy's heads are that narrow. A matrix library takes as long for their 5 % of the arithmetic
    as for the rest; with narrow rows in place of narrow columns, and no inner size of 1, it takes a
    fifth of that.
    """
    num_rows, num_inner, num_columns = *x.shape[1:], y.shape[2]
    if num_inner == 1:
        return torch.bmm(torch.cat((x, x), 2), torch.cat((y, torch.zeros_like(y)), 1))
    if num_columns <= _NARROW < num_rows:
        return torch.bmm(y.mT.contiguous(), x.mT).mT
    return NotImplemented  # the operation is kept


def narrow_baddbmm(
    bias: Tensor, x: Tensor, y: Tensor, *, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """Return ``bias`` plus the products; see ``narrow_bmm``."""
    product = narrow_bmm(x, y)
    if product is NotImplemented or beta != 1.0 or alpha != 1.0:
        return NotImplemented
    return product + bias


_NARROW = 8
DECOMPOSITIONS: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.tanh.default: fast_tanh,
    torch.ops.aten.bmm.default: narrow_bmm,
    torch.ops.aten.baddbmm.default: narrow_baddbmm,
}
"""The replacement of each operation in a compiled program."""
