"""Activations in host memory from the forward pass that saves them to the backward pass.

autograd calls one hook for each tensor that it saves and another when the backward pass needs it
(``torch.autograd.graph.saved_tensors_hooks``). Here they copy a tensor's whole storage to pinned
memory and back, so layouts, and with them the results, stay as they are. A storage that is saved
several times, such as an activation that the next layer reads too, is copied once each way, and is
on the device from its first use in a backward pass to its last.

Copies are queued on the stream that computes, in program order: nothing is overwritten early, and
nothing is hidden behind the arithmetic.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.devices.placement import Place, Placement, tensors_of
from ppo_lab.networks import ActorCritic

__all__ = ["HostActivations"]

_SMALLEST = 1024
"""Bytes: smaller tensors stay, as in torchtune and TRL; a copy would cost more than it saves."""


class _Stored:
    """The copy of one storage."""

    def __init__(self, tensor: Tensor, storage: torch.UntypedStorage, place: Placement) -> None:
        self.source, self.version = weakref.ref(storage), tensor._version
        flat = tensor.as_strided((storage.nbytes() // tensor.element_size(),), (1,), 0)
        self.host = place.empty_host_like(flat, pin=True)
        place.move(flat, Place.host, out=self.host, non_blocking=True)
        self.num_uses = self.num_left = 0  # in a backward pass
        self.device: Tensor | None = None

    def is_of(self, tensor: Tensor, storage: torch.UntypedStorage) -> bool:
        """Return whether this is a copy of what ``storage`` holds now."""
        return self.source() is storage and self.version == tensor._version

    def fetch(self, placement: Placement) -> Tensor:
        """Return the storage's content on the device; the last use gives it up."""
        if self.device is None:
            self.device = placement.move(self.host, Place.device, non_blocking=True)
            self.num_left = self.num_uses
        flat, self.num_left = self.device, self.num_left - 1
        if self.num_left <= 0:
            self.device = None
        return flat


class _View(NamedTuple):
    """A saved tensor as part of its storage."""

    stored: _Stored
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


class HostActivations:
    """Context of forward passes whose saved tensors are kept in host memory."""

    def __init__(self, model: ActorCritic, placement: Placement) -> None:
        """Copy through ``placement``; parameters and buffers of ``model`` stay where they are."""
        self._model, self._placement = model, placement
        self._staying: dict[int, torch.UntypedStorage] = {}
        self._stored: weakref.WeakValueDictionary[int, _Stored] = weakref.WeakValueDictionary()

    @contextmanager
    def __call__(self, inputs: object) -> Iterator[None]:
        """Keep what is saved inside on the host, but for the model's own and ``inputs``, a nest."""
        staying = (*self._model.parameters(), *self._model.buffers(), *tensors_of(inputs))
        storages = [tensor.untyped_storage() for tensor in staying]
        self._staying = {id(storage): storage for storage in storages}
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield
        self._staying = {}

    @torch.no_grad()
    def _pack(self, tensor: Tensor) -> Tensor | _View:
        storage = tensor.untyped_storage()
        key, is_small = id(storage), storage.nbytes() < _SMALLEST
        if is_small or key in self._staying or tensor.device.type != self._placement.device.type:
            return tensor.detach()  # the tensor itself would refer to the graph that keeps it
        stored = self._stored.get(key)
        if stored is None or not stored.is_of(tensor, storage):
            stored = self._stored[key] = _Stored(tensor.detach(), storage, self._placement)
        stored.num_uses += 1
        return _View(
            stored, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset())
        )

    @torch.no_grad()
    def _unpack(self, packed: Tensor | _View) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        flat = packed.stored.fetch(self._placement).view(packed.dtype)
        return flat.as_strided(packed.shape, packed.stride, packed.offset)
