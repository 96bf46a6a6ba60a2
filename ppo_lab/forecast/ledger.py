"""Counts every byte that tensors hold, by what they are for, while ordinary code runs.

The ledger sees each operation of the program (a torch dispatch mode) and each storage that comes
and goes with it. It counts a CPU run, a CUDA run and a dry run on fake tensors alike, so what is
forecast and what is measured are the same program, read by the same eyes.

A storage's category is what it turned out to be: a layer's gradient is born as a nameless result of
the backward pass and is named when it lands on its parameter. So a peak is kept as the list of
storages that were alive, and is added up by category when it is asked for.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppo_lab.devices.placement import Place
from ppo_lab.forecast.categories import (
    Allocation,
    Category,
    HostBytes,
    MemoryKey,
    Peak,
    replay,
    sum_by_key,
)
from ppo_lab.utils import torch_private
from ppo_lab.utils.torch_private import TorchDispatchMode

__all__ = ["Ledger", "tensors_of"]

_DEVICE_ROUNDING = 512
"""c10/core/AllocatorConfig.h, kMinBlockSize: CUDA's allocator gives multiples of it."""


@dataclass
class _PhasePeak:
    total: int
    doing: tuple[str, object]  # in words, and the operation
    blocks: list[Allocation]


class Ledger(TorchDispatchMode):
    """Counts while it is entered; see the module.

    Where host and device are one memory, which storage would lie where is what ``placing`` was told
    when it was made, else where the tensors lie that it was computed from, else the device.
    """

    def __init__(self, device: torch.device) -> None:
        """Start with nothing seen; tensors on ``device`` are device memory.

        A storage made before the ledger was entered is counted from the first operation that
        returns it, or from ``mark``.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._device_type = device.type
        self._blocks: dict[int, tuple[weakref.ref[Any], Allocation]] = {}  # by the storage's id
        self._live: dict[Allocation, None] = {}  # on the device; a dict keeps the order of birth
        self._now = 0  # bytes of _live
        self._host_now = [0, 0]  # pageable, pinned
        self._host_peak = HostBytes(0, 0)
        self._placed: tuple[Place, bool] | None = None
        self._network: str | None = None
        self._phase: str | None = None
        self._events: list[tuple[Allocation, bool]] = []  # births (True) and deaths of this phase
        self._peak_event = 0  # events up to the phase's peak
        self._peak_now = 0
        self._peak_doing: tuple[str, object] = ("", None)
        self._doing: str | None = None
        self._phase_peaks: dict[str, _PhasePeak] = {}
        self.num_operations: dict[str, int] = defaultdict(int)
        """Operations seen, by phase."""

    # What happened, asked afterwards

    @property
    def phase_peaks(self) -> dict[str, Peak]:
        """Return each finished phase's peak, in the order the phases first began."""
        return {name: _as_peak(name, peak) for name, peak in self._phase_peaks.items()}

    @property
    def peak(self) -> Peak:
        """Return the largest of the phases' peaks."""
        return max(self.phase_peaks.values(), key=lambda peak: peak.total)

    @property
    def host_peak(self) -> HostBytes:
        """Return the most host memory at once, in any phase."""
        return self._host_peak

    @property
    def now(self) -> int:
        """Return the device bytes held at this moment."""
        return self._now

    def shares_now(self) -> dict[MemoryKey, int]:
        """Return what is held on the device at this moment, by category and network."""
        return sum_by_key(self._live)

    # What the program says about itself

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the peak of what runs inside towards ``name``; phases do not nest."""
        assert self._phase is None, f"{name} within {self._phase}"
        before = list(self._live)
        self._phase, self._peak_now, self._peak_event = name, self._now, 0
        self._events.clear()
        self._take_host_peak()
        try:
            yield
        finally:
            known = self._phase_peaks.get(name)
            if known is None or self._peak_now > known.total:
                alive = replay(before, self._events[: self._peak_event])
                self._phase_peaks[name] = _PhasePeak(self._peak_now, self._peak_doing, alive)
            self._events.clear()
            self._phase = None

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Name what runs inside, where it is neither a forward nor a backward pass."""
        before, self._doing = self._doing, what
        try:
            yield
        finally:
            self._doing = before

    @contextmanager
    def placing(self, place: Place, *, is_pinned: bool = False) -> Iterator[None]:
        """Take storages made inside for ones in ``place``."""
        before, self._placed = self._placed, (place, is_pinned)
        try:
            yield
        finally:
            self._placed = before

    def mark(
        self, category: Category, tensors: Iterable[Tensor], network: str | None = None
    ) -> None:
        """Say what the storages of ``tensors`` are for."""
        self.mark_shared(category, ((tensor, network) for tensor in tensors))

    def mark_shared(self, category: Category, tensors: Iterable[tuple[Tensor, str | None]]) -> None:
        """Say what each tensor's part of its storage is for: (tensor, network).

        Several tensors may be views of one storage, which is then shared out by their bytes; what
        rounding added goes to the last.
        """
        parts: dict[int, tuple[Allocation, dict[MemoryKey, int]]] = {}
        for tensor, network in tensors:
            block = self._see(tensor, ())
            _, shares = parts.setdefault(id(block), (block, defaultdict(int)))
            shares[MemoryKey(category, network)] += tensor.numel() * tensor.element_size()
        for block, shares in parts.values():
            *others, last = shares.items()
            rest = block.num_bytes - sum(num_bytes for _, num_bytes in others)
            block.shares = (*others, (last[0], rest))

    def watch(self, networks: dict[str, list[nn.Parameter]]) -> list[Callable[[], None]]:
        """Mark every gradient when it lands on its parameter; return what ends the watching."""
        removers = []
        for network, parameters in networks.items():
            for parameter in parameters:
                hook = parameter.register_post_accumulate_grad_hook(self._on_gradient(network))
                removers.append(hook.remove)
        return removers

    def watch_forward(self, network: str, module: nn.Module) -> list[Callable[[], None]]:
        """Take activations made while ``module`` runs for ``network``'s; return what ends it."""

        def begin(*_: object) -> None:
            self._network = network

        def end(*_: object) -> None:
            self._network = None

        before = module.register_forward_pre_hook(begin)
        after = module.register_forward_hook(end, always_call=True)
        return [before.remove, after.remove]

    def _on_gradient(self, network: str) -> Callable[[Tensor], None]:
        def mark(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self.mark(Category.gradients, [parameter.grad], network)

        return mark

    # What is seen of it

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard imports and costs a lot

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run one operation and take note of new storages among its results."""
        if func is torch.ops.prim.device.default:  # a fake tensor is asked where it pretends to be
            return args[0].fake_device
        result = func(*args, **kwargs) if kwargs else func(*args)
        if self._phase is not None:
            self.num_operations[self._phase] += 1
        if isinstance(result, Tensor):
            self._see(result, args, func)
        elif isinstance(result, tuple | list):
            for tensor in result:
                if isinstance(tensor, Tensor):
                    self._see(tensor, args, func)
        return result

    def _see(self, tensor: Tensor, args: tuple[Any, ...], func: object = None) -> Allocation:
        """Return the block of ``tensor``'s storage, new or known."""
        storage = tensor.untyped_storage()
        known = self._blocks.get(id(storage))
        if known is not None:
            return known[1]
        block = self._new_block(storage, list(tensors_of(args)))
        key = id(storage)
        self._blocks[key] = (weakref.ref(storage, lambda _: self._forget(key)), block)
        self._add(block, func)
        return block

    def _new_block(self, storage: torch.UntypedStorage, inputs: list[Tensor]) -> Allocation:
        in_backward = _in_backward()
        is_result = all(tensor.untyped_storage() is not storage for tensor in inputs)  # no old one
        is_activation = is_result and (
            in_backward
            or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs))
        )
        share = MemoryKey(Category.workspace)
        if is_activation:
            share = MemoryKey(Category.activations, None if in_backward else self._network)
        place, is_pinned = self._place_of(storage, inputs)
        num_bytes: int = storage.nbytes()
        if place is Place.device:
            return Allocation(
                -(-num_bytes // _DEVICE_ROUNDING) * _DEVICE_ROUNDING, share, in_host=False
            )
        if is_pinned and num_bytes:
            num_bytes = 1 << (num_bytes - 1).bit_length()
        return Allocation(num_bytes, share, in_host=True, is_pinned=is_pinned)

    def _place_of(self, storage: torch.UntypedStorage, inputs: list[Tensor]) -> tuple[Place, bool]:
        """Return where a new storage lies, or would beside a real device, and if it is pinned."""
        is_one_memory = self._device_type == "cpu"
        if not is_one_memory and storage.device.type == self._device_type:
            return Place.device, False
        if self._placed is not None:
            return self._placed
        if not is_one_memory:
            return Place.host, False
        # Numbers follow the tensors they meet, as they do between devices.
        sources = [tensor for tensor in inputs if tensor.dim()] or inputs
        return Place.host if sources and all(
            map(self._is_in_host, sources)
        ) else Place.device, False

    def _is_in_host(self, tensor: Tensor) -> bool:
        known = self._blocks.get(id(tensor.untyped_storage()))
        return known is not None and known[1].in_host

    def _add(self, block: Allocation, func: object) -> None:
        if block.in_host:
            self._host_now[block.is_pinned] += block.num_bytes
            self._take_host_peak()
            return
        self._live[block] = None
        self._now += block.num_bytes
        if self._phase is None:
            return
        self._events.append((block, True))
        if self._now > self._peak_now:
            self._peak_now, self._peak_event = self._now, len(self._events)
            self._peak_doing = (self._doing or _pass_of(block), func)

    def _take_host_peak(self) -> None:
        pageable, pinned = self._host_now
        if self._phase is not None and pageable + pinned > self._host_peak.total:
            self._host_peak = HostBytes(pinned, pageable)

    def _forget(self, key: int) -> None:
        """Take a freed storage out; called by the interpreter as the storage goes."""
        _, block = self._blocks.pop(key)
        if block.in_host:
            self._host_now[block.is_pinned] -= block.num_bytes
            return
        del self._live[block]
        self._now -= block.num_bytes
        if self._phase is not None:
            self._events.append((block, False))


def tensors_of(values: Any) -> Iterator[Tensor]:  # noqa: ANN401 - any nest
    """Return the tensors in nested tuples, lists and dictionaries."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from tensors_of(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from tensors_of(value)


def _in_backward() -> bool:
    return torch_private.current_graph_task_id() != -1


def _pass_of(block: Allocation) -> str:
    if _in_backward():
        return "backward"
    return "forward" if block.shares[0][0].category is Category.activations else ""


def _as_peak(phase: str, peak: _PhasePeak) -> Peak:
    doing, operation = peak.doing
    packet = getattr(operation, "_overloadpacket", None)
    if packet is not None:
        doing = f"{doing} ({packet.__name__})".strip()
    return Peak(peak.total, phase, doing, sum_by_key(peak.blocks))
