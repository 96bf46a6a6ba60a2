"""Programs as CUDA graphs: all that a function launches, recorded once and launched as one.

A recorded function reads and writes the memory it was recorded with, and its Python runs no more.
So a program has places of its own for its arguments, which every call fills, but for those that are
the same tensors at every call (parameters, the optimizer's state): they are read and changed where
they lie. What a function returns lies in memory that the next call overwrites, and that all graphs
share: callers get copies.

Only ``CudaGraphCapturer`` needs a device. ``HostRecorder`` stands in for it: it keeps operations as
a list, in fixed memory and without their Python too, and goes through them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ppo_lab.compiler.program_cache import CompilerError, ProgramSource, copy_of

__all__ = [
    "CudaGraphCapturer",
    "GraphCapturer",
    "GraphLoader",
    "GraphProgram",
    "HostRecorder",
    "Recording",
]

Function = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Recording:
    """A function that can be run again on the tensors it was recorded with."""

    replay: Callable[[], None]
    outputs: Sequence[Tensor]
    """What it returns: every replay writes it, always in the same place."""


class GraphCapturer(Protocol):
    """The two things that need a device."""

    def warm_up(self, function: Function, tensors: Sequence[Tensor]) -> None:
        """Run ``function`` as it will be recorded, so that what is made once has been made."""

    def record(self, function: Function, tensors: Sequence[Tensor]) -> Recording:
        """Record what ``function`` does with ``tensors``, without doing it."""


class CudaGraphCapturer:
    """Records CUDA graphs, on a stream and in a pool of memory that all of them share.

    Sharing is safe because they run one after the other and what they return is copied before the
    next one runs. No generator has to be told: random numbers here are functions of counters.
    """

    def __init__(self, device: torch.device) -> None:
        """Record on ``device``."""
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Function, tensors: Sequence[Tensor]) -> None:
        """See ``GraphCapturer.warm_up``: kernels are loaded, and this stream's cuBLAS is set up."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function(*tensors)
        current.wait_stream(self._stream)

    def record(self, function: Function, tensors: Sequence[Tensor]) -> Recording:
        """See ``GraphCapturer.record``."""
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(
            graph,
            pool=self._pool,
            stream=self._stream,
            # What other threads ask of CUDA meanwhile, such as W&B's, is no part of it.
            capture_error_mode="thread_local",
        )
        # Where a capture fails, torch.cuda.graph stays on its stream; the outer block leaves it.
        with torch.cuda.stream(self._stream), recording:
            outputs = function(*tensors)
        return Recording(graph.replay, outputs)


class HostRecorder:
    """Keeps the operations as a list and goes through it: graphs for where there is no CUDA.

    As under capture, Python's values are those of the recording for good, every intermediate tensor
    has its memory, and nothing can be read back to the host. It shows that all of our part of the
    work is right; it is no way to be fast.
    """

    def warm_up(self, function: Function, tensors: Sequence[Tensor]) -> None:
        """See ``GraphCapturer.warm_up``."""
        function(*tensors)

    def record(self, function: Function, tensors: Sequence[Tensor]) -> Recording:
        """See ``GraphCapturer.record``; what the one run that this takes has changed is undone."""
        before = [copy_of(tensor) for tensor in tensors]
        with _Operations() as operations:
            outputs = function(*tensors)
        for tensor, old in zip(tensors, before):
            tensor.copy_(old)
        return Recording(operations.replay, outputs)


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
        types: Any,  # noqa: ANN401 - torch's signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
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


def _tensors_in(values: Any) -> list[Tensor]:  # noqa: ANN401 - nested as operations take them
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class GraphProgram:
    """A recorded function; call it with a list of tensors like its examples."""

    def __init__(self, source: ProgramSource, recorder: GraphCapturer) -> None:
        """Record ``source``, whose tensors keep their values."""
        kept = {id(tensor) for tensor in source.kept}
        self._is_kept = [id(tensor) in kept for tensor in source.examples]
        self._places = [
            tensor if is_kept else tensor.detach().clone(memory_format=torch.contiguous_format)
            for tensor, is_kept in zip(source.examples, self._is_kept)
        ]
        self._addresses = [place.data_ptr() for place in self._places]
        # A warm-up runs for real, so it gets copies of what must not change.
        trial = [
            copy_of(place) if is_kept else place
            for place, is_kept in zip(self._places, self._is_kept)
        ]
        versions = [tensor._version for tensor in trial]
        with torch.no_grad():
            recorder.warm_up(source.function, trial)
            is_changed = [tensor._version != old for tensor, old in zip(trial, versions)]
            del trial
            self._recording = recorder.record(source.function, self._places)
        self._to_copy_back = [
            position
            for position, is_kept in enumerate(self._is_kept)
            if is_changed[position] and not is_kept
        ]

    @torch.no_grad()
    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the function's tensors, as copies; nothing waits for the device."""
        for position, (tensor, place) in enumerate(zip(tensors, self._places, strict=True)):
            if self._is_kept[position]:
                if tensor.data_ptr() != self._addresses[position]:
                    raise ValueError(f"argument {position} has moved since it was recorded")
                continue
            if tensor.shape != place.shape or tensor.dtype != place.dtype:
                its = f"{tuple(tensor.shape)} of {tensor.dtype}"
                raise ValueError(
                    f"argument {position} is {its}, not {tuple(place.shape)} of {place.dtype}"
                )
            place.copy_(tensor)
        self._recording.replay()
        for position in self._to_copy_back:
            tensors[position].copy_(self._places[position])
        return [output.clone() for output in self._recording.outputs]


class GraphLoader:
    """Makes programs by recording them; see ``ProgramCache`` for the other kind."""

    def __init__(self, recorder: GraphCapturer) -> None:
        """Record with ``recorder``."""
        self._recorder = recorder

    def is_cached(self, sources: Sequence[ProgramSource]) -> bool:  # noqa: ARG002 - all the same
        """Return whether nothing of ``sources`` takes long: a recording takes as long as a run."""
        return True

    def load(self, sources: Sequence[ProgramSource]) -> list[GraphProgram]:
        """Return the programs of ``sources``.

        Raises:
            CompilerError: with the first line of what went wrong, if one cannot be recorded.
        """
        return [self._record(source) for source in sources]

    def _record(self, source: ProgramSource) -> GraphProgram:
        try:
            return GraphProgram(source, self._recorder)
        except RuntimeError as error:
            # A capture that has failed fails once more when it is ended: the first says why.
            first = [e for e in _chain(error) if isinstance(e, RuntimeError)][-1]
            if isinstance(first, torch.OutOfMemoryError):
                raise first from None  # which is a result, not a fault
            line = str(first).strip().partition("\n")[0]
            raise CompilerError(
                f"could not record {source.name}: {type(first).__name__}: {line}"
            ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Return ``error`` and those it was raised in the handling of, the latest first."""
    while error is not None:
        yield error
        error = error.__context__
