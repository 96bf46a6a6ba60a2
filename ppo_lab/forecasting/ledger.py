"""Count the bytes of every tensor by category and network while ordinary code runs.

The ledger is a torch dispatch mode: it sees each operation of the program and each storage that the
operation allocates, and a weak reference reports when the storage is freed. CPU runs, CUDA runs and
dry runs on fake tensors are counted by the same code. torch's own MemTracker
(torch.distributed._tools) is alike, but private, and has neither PPO's phases nor the host.

A category may be known only later: a layer's gradient is first an anonymous result of the backward
pass, and is marked when it is accumulated into its parameter. So a peak is kept as the list of
storages that existed, and is summed by category on request.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppo_lab.devices.placement import Place, Placement, tensors_of
from ppo_lab.forecasting.categories import (
    Allocation,
    Category,
    HostBytes,
    MemoryKey,
    Peak,
    sum_by_key,
)
from ppo_lab.networks.sequences import SequenceTrunk
from ppo_lab.utils import torch_private
from ppo_lab.utils.torch_private import TorchDispatchMode

__all__ = ["Ledger"]

_DEVICE_ROUNDING = 512
"""c10/core/AllocatorConfig.h, kMinBlockSize: CUDA's allocator gives multiples of it."""


@dataclass
class _PhasePeak:
    total: int
    doing: str = ""
    allocations: list[Allocation] | None = None  # None until one is freed: all that exist


class Ledger(TorchDispatchMode):
    """Counts memory while it is entered; see the module.

    A storage made before that is counted from the first operation that returns it, or from
    ``mark``. On a CPU, where host and device are one memory, a storage belongs to the place of the
    enclosing ``Placement.placing``, else to the place of the tensors it was computed from, else to
    the device.
    """

    def __init__(self, placement: Placement) -> None:
        """Start empty; the device memory counted is that of ``placement``."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._placement, self._is_one_memory = placement, not placement.is_cuda
        self._known: dict[int, tuple[weakref.ref[Any], Allocation]] = {}  # by the storage's id
        self._live: dict[Allocation, None] = {}  # on the device, in the order of allocation
        self.now = 0
        """Device bytes in use."""
        self._host_now = [0, 0]  # pageable, pinned
        self.host_peak = HostBytes(0, 0)
        """The most host memory at once, in any phase."""
        self._network: str | None = None
        self._is_in_forward = False  # of a module, for a backward pass
        self.doing: str | None = None
        """Name of what runs now, unless it is a forward or a backward pass."""
        self._phase: str | None = None
        self._peak = _PhasePeak(0)  # this phase's
        self._phase_peaks: dict[str, _PhasePeak] = {}
        self.num_operations: dict[str, int] = defaultdict(int)
        """Operations by phase."""

    # Results

    @property
    def phase_peaks(self) -> dict[str, Peak]:
        """Each finished phase's peak, in the order in which the phases first began."""
        return {
            name: Peak(peak.total, name, peak.doing, sum_by_key(peak.allocations or ()))
            for name, peak in self._phase_peaks.items()
        }

    @property
    def peak(self) -> Peak:
        """The largest of the phases' peaks."""
        return max(self.phase_peaks.values(), key=lambda peak: peak.total)

    # Annotations by the program

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute the peak of what runs inside to the phase ``name``; phases do not nest."""
        assert self._phase is None, f"{name} within {self._phase}"
        self._phase, self._peak = name, _PhasePeak(self.now)
        self._update_host_peak()
        try:
            yield
        finally:
            self._phase = None
            self._list_peak()
            known = self._phase_peaks.get(name)
            if known is None or self._peak.total > known.total:
                self._phase_peaks[name] = self._peak

    def mark(
        self, category: Category, tensors: Iterable[Tensor], network: str | None = None
    ) -> None:
        """Set the category and the network of the storages of ``tensors``."""
        self.mark_shared(category, ((tensor, network) for tensor in tensors))

    def mark_shared(self, category: Category, tensors: Iterable[tuple[Tensor, str | None]]) -> None:
        """Set the category and the network of each (tensor, network).

        Tensors that are views of one storage divide its bytes in proportion to their own; the
        rounding is added to the last.
        """
        marked: dict[Allocation, dict[MemoryKey, int]] = defaultdict(lambda: defaultdict(int))
        for tensor, network in tensors:
            num_bytes = tensor.numel() * tensor.element_size()
            marked[self._allocation_of(tensor, ())][MemoryKey(category, network)] += num_bytes
        for allocation, parts in marked.items():
            *others, (last, _) = parts.items()
            rest = allocation.num_bytes - sum(num_bytes for _, num_bytes in others)
            allocation.parts = (*others, (last, rest))

    def watch(self, networks: dict[str, list[nn.Parameter]]) -> list[Callable[[], None]]:
        """Mark every gradient when it has been accumulated; return what removes the hooks."""

        def mark(network: str, parameter: Tensor) -> None:
            if parameter.grad is not None:
                self.mark(Category.gradients, [parameter.grad], network)

        return [
            parameter.register_post_accumulate_grad_hook(partial(mark, network)).remove
            for network, parameters in networks.items()
            for parameter in parameters
        ]

    def watch_forward(
        self, network: str, module: nn.Module, *, marks_weights: bool = False
    ) -> list[Callable[[], None]]:
        """Attribute activations of ``module`` to ``network``; return what removes the hooks.

        ``marks_weights``: mark its weights when it is used, as others may have taken their place.
        """

        def begin(*_: object) -> None:
            self._network, self._is_in_forward = network, torch.is_grad_enabled()
            if marks_weights:
                self.mark(Category.weights, module.parameters(), network)

        def end(*_: object) -> None:
            self._network, self._is_in_forward = None, False

        before = module.register_forward_pre_hook(begin)
        after = module.register_forward_hook(end, always_call=True)
        removers = [before.remove, after.remove]
        if not isinstance(module, SequenceTrunk):
            return removers
        read, empty_memory = module.read, module.empty_memory  # no calls of the module itself

        def watched_read(*args: Any) -> Any:  # noqa: ANN401
            begin()
            try:
                return read(*args)
            finally:
                end()

        def watched_memory(*args: Any) -> Any:  # noqa: ANN401
            memory = empty_memory(*args)
            self.mark(Category.cache, tensors_of(memory), network)
            return memory

        for name, function in (("read", watched_read), ("empty_memory", watched_memory)):
            setattr(module, name, function)
            removers.append(partial(delattr, module, name))
        return removers

    def watch_logits(self, network: str, head: nn.Module) -> list[Callable[[], None]]:
        """Count the output of ``head`` as logits, and what is computed from it element by element.

        Returns what removes the hook.
        """

        def mark(_module: nn.Module, _inputs: object, logits: Tensor) -> None:
            self.mark(Category.logits, [logits], network)

        return [head.register_forward_hook(mark).remove]

    # Observation of the program

    _should_skip_dynamo = classmethod(lambda _: False)  # nothing is compiled, the guard is slow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's signature
        """Run one operation and count the storages that it allocates."""
        if func is torch.ops.prim.device.default:  # a fake tensor has a device of its own
            return args[0].fake_device
        result = func(*args, **kwargs) if kwargs else func(*args)
        if self._phase is not None:
            self.num_operations[self._phase] += 1
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._allocation_of(tensor, args, func.__name__)
        return result

    def _allocation_of(self, tensor: Tensor, args: object, operation: str = "") -> Allocation:
        """Return the allocation of ``tensor``'s storage, new or known."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if (known := self._known.get(key)) is not None:
            return known[1]
        allocation = self._new_allocation(tensor, storage, list(tensors_of(args)))
        self._known[key] = (weakref.ref(storage, lambda _: self._free(key)), allocation)
        self._add(allocation, operation)
        return allocation

    def _new_allocation(
        self, tensor: Tensor, storage: torch.UntypedStorage, inputs: list[Tensor]
    ) -> Allocation:
        in_backward = _in_backward()
        # Within a Python autograd function, as ``quick_tanh`` is one, torch records no gradients.
        is_recorded = self._is_in_forward or torch.is_grad_enabled()
        needs_grad = is_recorded and any(tensor.requires_grad for tensor in inputs)
        is_result = all(tensor.untyped_storage() is not storage for tensor in inputs)  # no view
        key = MemoryKey(Category.workspace)
        if is_result and (in_backward or needs_grad):
            key = MemoryKey(Category.activations, None if in_backward else self._network)
        if is_result and (of_logits := self._key_of_logits(tensor, inputs)) is not None:
            key = of_logits
        place, is_pinned = self._place_of(storage, inputs)
        num_bytes: int = storage.nbytes()
        if place is Place.device:
            num_bytes = -(-num_bytes // _DEVICE_ROUNDING) * _DEVICE_ROUNDING
        elif is_pinned and num_bytes:
            num_bytes = 1 << (num_bytes - 1).bit_length()
        return Allocation(num_bytes, ((key, num_bytes),), place is Place.host, is_pinned)

    def _key_of_logits(self, result: Tensor, inputs: list[Tensor]) -> MemoryKey | None:
        """Return the key of the logits from which ``result`` is computed element by element."""
        if not result.is_floating_point():
            return None
        for tensor in inputs:
            known = self._known.get(id(tensor.untyped_storage()))
            if known is not None and tensor.shape == result.shape:
                key = known[1].parts[0][0]
                if key.category is Category.logits:
                    return key
        return None

    def _place_of(self, storage: torch.UntypedStorage, inputs: list[Tensor]) -> tuple[Place, bool]:
        """Return the place of a new storage, or its place in a CUDA run, and if it is pinned."""
        if not self._is_one_memory and storage.device.type == "cuda":
            return Place.device, False
        if self._placement.placed is not None:
            return self._placement.placed
        # Scalars do not decide: operations mix them with tensors of either place.
        sources = [tensor for tensor in inputs if tensor.dim()] or inputs
        is_in_host = bool(sources) and all(map(self._is_in_host, sources))
        return Place.host if is_in_host or not self._is_one_memory else Place.device, False

    def _is_in_host(self, tensor: Tensor) -> bool:
        known = self._known.get(id(tensor.untyped_storage()))
        return known is not None and known[1].in_host

    def _add(self, allocation: Allocation, operation: str) -> None:
        if allocation.in_host:
            self._host_now[allocation.is_pinned] += allocation.num_bytes
            self._update_host_peak()
            return
        self._live[allocation] = None
        self.now += allocation.num_bytes
        if self._phase is not None and self.now > self._peak.total:
            category = allocation.parts[0][0].category
            is_forward = category in (Category.activations, Category.logits)
            part = "backward" if _in_backward() else "forward" if is_forward else ""
            name = f" ({operation.partition('.')[0]})" if operation else ""  # mm of mm.default
            self._peak = _PhasePeak(self.now, f"{self.doing or part}{name}".strip())

    def _list_peak(self) -> None:
        """List what exists at the peak, before something is freed."""
        if self._peak.allocations is None:
            self._peak.allocations = list(self._live)

    def _update_host_peak(self) -> None:
        pageable, pinned = self._host_now
        if self._phase is not None and pageable + pinned > self.host_peak.total:
            self.host_peak = HostBytes(pinned, pageable)

    def _free(self, key: int) -> None:
        """Remove a storage; called by the interpreter when it is freed."""
        _, allocation = self._known.pop(key)
        if allocation.in_host:
            self._host_now[allocation.is_pinned] -= allocation.num_bytes
            return
        self._list_peak()
        del self._live[allocation]
        self.now -= allocation.num_bytes


def _in_backward() -> bool:
    return torch_private.current_graph_task_id() != -1
