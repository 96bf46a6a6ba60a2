"""Functions as CUDA graphs: all kernels that a function launches, captured once, launched as one.

A captured graph reads and writes the memory it was captured with, and runs no Python. So a program
has buffers for its arguments, which every call fills; its state is read and changed where it is.
Results are in memory that the next replay overwrites, and that all graphs share: callers get
copies.

Only ``CudaGraphCapturer`` needs a device; the tests have another capturer for the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ppo_lab.compiler.compiled import (
    CompiledFunction,
    CompilerError,
    CompileSpec,
    clone_strided,
    flatten,
    structure_of,
)

__all__ = ["Capture", "CudaGraphCapturer", "GraphCapturer", "capture_function"]

Function = Callable[..., Any]


@dataclass(frozen=True)
class Capture:
    """A function that can be replayed on the tensors it was captured with."""

    replay: Callable[[], None]
    outputs: Sequence[Tensor]
    """Results: every replay writes them, always in the same place."""


class GraphCapturer(Protocol):
    """The two operations that need a device."""

    def warm_up(self, function: Function, tensors: Sequence[Tensor]) -> Any:  # noqa: ANN401
        """Call ``function`` as it will be captured, so that one-time initialization is done."""

    def capture(self, function: Function, tensors: Sequence[Tensor]) -> Capture:
        """Capture what ``function`` does with ``tensors``, without changing them."""


class CudaGraphCapturer:
    """Captures CUDA graphs, on one stream and in one memory pool that all graphs share.

    Sharing is safe because graphs run one after the other and results are copied before the next
    replay. No generator is registered: random numbers here are functions of counters.
    """

    def __init__(self, device: torch.device) -> None:
        """Capture on ``device``."""
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Function, tensors: Sequence[Tensor]) -> Any:  # noqa: ANN401
        """See ``GraphCapturer.warm_up``: loads kernels and sets up cuBLAS on this stream."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = function(*tensors)
        current.wait_stream(self._stream)
        return result

    def capture(self, function: Function, tensors: Sequence[Tensor]) -> Capture:
        """See ``GraphCapturer.capture``."""
        graph = torch.cuda.CUDAGraph()
        # CUDA calls of other threads, such as W&B's, must not end the capture.
        capture = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        # After a failed capture torch.cuda.graph stays on its stream; the outer block leaves it.
        with torch.cuda.stream(self._stream), capture:
            outputs = function(*tensors)
        return Capture(graph.replay, outputs)


class _GraphProgram:
    """A captured function; call it with a list of tensors like those of its spec's arguments."""

    def __init__(self, spec: CompileSpec, capturer: GraphCapturer) -> None:
        """Capture ``spec``, whose tensors keep their values."""
        kept = torch.contiguous_format
        self._buffers = [t.detach().clone(memory_format=kept) for t in flatten(spec.args)]
        versions = [buffer._version for buffer in self._buffers]
        with torch.no_grad():
            # A warm-up runs for real, so it gets a copy of the state.
            state = [clone_strided(tensor) for tensor in spec.state]
            result = capturer.warm_up(spec.call, [*state, *self._buffers])
            self.result_structure = structure_of(result)
            del state, result
            self._is_changed = [b._version != old for b, old in zip(self._buffers, versions)]
            self._capture = capturer.capture(spec.call_flat, [*spec.state, *self._buffers])

    @torch.no_grad()
    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return copies of the results, without synchronizing with the device."""
        for position, (tensor, buffer) in enumerate(zip(tensors, self._buffers, strict=True)):
            if tensor.shape != buffer.shape or tensor.dtype != buffer.dtype:
                its, expected = (f"{tuple(t.shape)} of {t.dtype}" for t in (tensor, buffer))
                raise ValueError(f"argument {position} is {its}, not {expected}")
            buffer.copy_(tensor)
        self._capture.replay()
        for tensor, buffer, is_changed in zip(tensors, self._buffers, self._is_changed):
            if is_changed:
                tensor.copy_(buffer)
        return [output.clone() for output in self._capture.outputs]


def capture_function(spec: CompileSpec, capturer: GraphCapturer) -> CompiledFunction:
    """Return the function of ``spec``, captured as a graph; raise ``CompilerError`` if it fails."""
    try:
        program = _GraphProgram(spec, capturer)
        return CompiledFunction(program, program.result_structure)
    except RuntimeError as error:
        # A failed capture raises once more when it is ended: the first error has the reason.
        first = [e for e in _chain(error) if isinstance(e, RuntimeError)][-1]
        if isinstance(first, torch.OutOfMemoryError):
            raise first from None  # callers handle it as a result, not as a fault
        line = str(first).strip().partition("\n")[0]
        message = f"could not capture {spec.name}: {type(first).__name__}: {line}"
        raise CompilerError(message) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield ``error`` and those it was raised in the handling of, the latest first."""
    while error is not None:
        yield error
        error = error.__context__
