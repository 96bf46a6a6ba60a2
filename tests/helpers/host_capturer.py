"""Captures functions on the CPU: stands in for CUDA graphs where there is no device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ppo_lab.compiler.compiled import clone_strided
from ppo_lab.compiler.cuda_graphs import Capture, Function

__all__ = ["HostCapturer"]


class HostCapturer:
    """Keeps operations in a list and repeats them.

    As under CUDA's capture, values of Python are fixed, every intermediate tensor
    has memory of its own, and nothing can be read back to the host.
    """

    def warm_up(self, function: Function, tensors: Sequence[Tensor]) -> Any:
        """See ``GraphCapturer.warm_up``."""
        return function(*tensors)

    def capture(self, function: Function, tensors: Sequence[Tensor]) -> Capture:
        """See ``GraphCapturer.capture``; the one run that this takes is undone."""
        before = [clone_strided(tensor) for tensor in tensors]
        with _Operations() as operations:
            outputs = function(*tensors)
        for tensor, old in zip(tensors, before):
            tensor.copy_(old)
        return Capture(operations.replay, outputs)


class _Operations(TorchDispatchMode):
    """Notes every operation on tensors while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Callable[[], Any], dict[int, Tensor]]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; to guard against it takes longer than all the rest

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a number is read back to the host")
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {_address(tensor) for tensor in _tensors_in((args, kwargs))}
        # A view, or what was changed in place, lies where it did the first time.
        made = {
            position: tensor
            for position, tensor in enumerate(_tensors_in(result))
            if _address(tensor) not in given
        }
        self._calls.append((functools.partial(func, *args, **kwargs), made))
        return result

    def replay(self) -> None:
        """Do it all again, on the same memory."""
        for call, made in self._calls:
            results = _tensors_in(call())
            for position, place in made.items():
                place.copy_(results[position])


def _tensors_in(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
