"""Functions of nested tensors, and their compiled counterparts.

A compiled program takes and returns lists of tensors; the functions of an iteration take and return
NamedTuples, some of whose fields are None. ``CompiledFunction`` converts between the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "CompileSpec", "CompiledFunction", "CompilerError", "FlatFunction", "clone_strided",
    "flatten", "layout_of", "structure_of",
]  # fmt: skip

FlatFunction = Callable[[list[Tensor]], list[Tensor]]
"""A compiled program, however it was made: takes the tensors of the arguments, in order."""

_LEAF = "tensor"
_NESTED = (tuple, list)


class CompilerError(RuntimeError):
    """A function could not be compiled."""


@dataclass(frozen=True)
class CompileSpec:
    """A function to compile, with example arguments."""

    name: str
    function: Callable[..., Any]
    """Called as ``function(state, *args)``; it may change tensors in place."""
    args: tuple[Any, ...]
    """Tensors, None, and tuples of them, with the shapes, strides and types of all later calls."""
    state: Sequence[Tensor] = ()
    """Tensors that every call reads and changes in place, at the same address: parameters, say."""

    @property
    def examples(self) -> list[Tensor]:
        """All tensors that the function depends on: the state, then the arguments."""
        return [*self.state, *flatten(self.args)]

    def copies(self) -> list[Tensor]:
        """Return copies of the examples, for a call that must not change them."""
        return [clone_strided(tensor) for tensor in self.examples]

    def call(self, *tensors: Tensor) -> Any:  # noqa: ANN401 - whatever ``function`` returns
        """Call the function with tensors like ``examples``."""
        structure = ([_LEAF] * len(self.state), *structure_of(self.args))
        return self.function(*_unflattener(structure)(iter(tensors)))

    def call_flat(self, *tensors: Tensor) -> list[Tensor]:
        """Call the function with tensors like ``examples``; return the tensors of its result."""
        return flatten((self.call(*tensors),))


class CompiledFunction:
    """A compiled function; call it with arguments like those of its spec."""

    def __init__(self, run: FlatFunction, result_structure: Any) -> None:  # noqa: ANN401
        """Wrap ``run``, a program with its state bound.

        ``result_structure`` is ``structure_of`` a result of the function: how results are nested.
        """
        self._run, self._unflatten = run, _unflattener(result_structure)

    def __call__(self, *args: Any) -> Any:  # noqa: ANN401
        """Return what the function returns."""
        return self._unflatten(iter(self._run(flatten(args))))

    def bind(self, *first: Any) -> Callable[..., Any]:  # noqa: ANN401
        """Return the function of the other arguments, without the cost of flattening ``first``."""
        flat = flatten(first)
        return lambda *rest: self._unflatten(iter(self._run(flat + flatten(rest))))


def flatten(nested: Sequence[Any]) -> list[Tensor]:
    """Return the tensors in nested tuples and lists, in order; None is skipped."""
    tensors: list[Tensor] = []
    for part in nested:
        if isinstance(part, _NESTED):
            tensors.extend(flatten(part))
        elif part is not None:
            tensors.append(part)
    return tensors


def structure_of(nested: Any) -> Any:  # noqa: ANN401 - the same nest of types
    """Return ``nested`` with a placeholder for each tensor."""
    if isinstance(nested, _NESTED):
        return getattr(type(nested), "_make", type(nested))([structure_of(p) for p in nested])
    return None if nested is None else _LEAF


def _unflattener(structure: Any) -> Callable[[Iterator[Tensor]], Any]:  # noqa: ANN401
    """Return what builds ``structure`` from the tensors of its placeholders, taken in order."""
    if structure is None:
        return lambda _: None
    if not isinstance(structure, _NESTED):
        return next
    make = getattr(type(structure), "_make", type(structure))
    if all(part is _LEAF for part in structure):  # the usual case, called thousands of times
        size = len(structure)
        return lambda tensors: make(itertools.islice(tensors, size))
    parts = [_unflattener(part) for part in structure]
    return lambda tensors: make([part(tensors) for part in parts])


def layout_of(nested: Any) -> Any:  # noqa: ANN401
    """Return what a program relies on: shapes, strides, types and devices, nested alike.

    Along an axis of one, the stride is irrelevant and reported as 0.
    """
    if isinstance(nested, _NESTED):
        return tuple(layout_of(part) for part in nested)
    if nested is None:
        return None
    strides = [step if size > 1 else 0 for size, step in zip(nested.shape, nested.stride())]
    return tuple(nested.shape), tuple(strides), str(nested.dtype), nested.device.type


def clone_strided(tensor: Tensor) -> Tensor:
    """Return a copy with the same strides, gaps included; ``clone`` would close them."""
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor.detach())
