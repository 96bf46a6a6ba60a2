"""The one way a tensor changes sides between the host's memory and the training device's.

Every transfer goes through ``Placement.move``, which counts its bytes by direction. On a CPU-only
machine both sides are the same memory, but a move still copies and still counts: what a strategy
would send over PCIe can be tested, and is never hidden by two names for one storage. Who counts
memory (``ledger``) is told where each tensor made here would lie.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Place", "Placement", "Traffic", "Watcher"]


class Place(Enum):
    """A side of the bus."""

    host = "host"
    device = "device"


@dataclass
class Traffic:
    """Bytes moved since the start, by direction."""

    h2d_bytes: int = 0
    d2h_bytes: int = 0

    def since(self, earlier: Traffic) -> Traffic:
        """Return what was moved after ``earlier`` was copied from this counter."""
        return Traffic(self.h2d_bytes - earlier.h2d_bytes, self.d2h_bytes - earlier.d2h_bytes)

    def plus(self, other: Traffic, times: tuple[int, int] = (1, 1)) -> Traffic:
        """Return this and ``other``, the latter times a fraction that leaves whole bytes."""
        many, parts = times
        h2d_bytes, h2d_rest = divmod(other.h2d_bytes * many, parts)
        d2h_bytes, d2h_rest = divmod(other.d2h_bytes * many, parts)
        assert h2d_rest == d2h_rest == 0
        return Traffic(self.h2d_bytes + h2d_bytes, self.d2h_bytes + d2h_bytes)


class Watcher(Protocol):
    """Who is told where tensors lie."""

    def placing(self, place: Place, *, is_pinned: bool = False) -> AbstractContextManager[None]:
        """Take tensors made inside for ones in ``place``."""


@dataclass
class Placement:
    """The training device, the host beside it, and the count of what passed between them."""

    device: torch.device
    traffic: Traffic = field(default_factory=Traffic)
    watcher: Watcher | None = None

    @property
    def is_cuda(self) -> bool:
        """Whether the two sides are really two memories."""
        return self.device.type == "cuda"

    def placing(self, place: Place, *, pin: bool = False) -> AbstractContextManager[None]:
        """Say that tensors made inside lie in ``place``, where both sides are one memory."""
        if self.watcher is None:
            return nullcontext()
        return self.watcher.placing(place, is_pinned=pin)

    def empty_host(self, *shape: int, dtype: torch.dtype, pin: bool) -> Tensor:
        """Return an uninitialised host tensor, pinned if asked and if there is a bus to cross."""
        with self.placing(Place.host, pin=pin):
            return torch.empty(shape, dtype=dtype, pin_memory=pin and self.is_cuda)

    def empty_host_like(self, tensor: Tensor, *, pin: bool) -> Tensor:
        """Return an uninitialised host tensor of the shape and type of ``tensor``."""
        with self.placing(Place.host, pin=pin):
            return torch.empty_like(tensor, device="cpu", pin_memory=pin and self.is_cuda)

    def move(
        self, tensor: Tensor, to: Place, out: Tensor | None = None, *, non_blocking: bool = False
    ) -> Tensor:
        """Copy ``tensor`` from the other side to ``to`` and count its bytes.

        The result never shares storage with ``tensor``. ``out`` is written when given, else a
        tensor is made. A copy to pinned host memory is complete only after a synchronisation when
        ``non_blocking`` is true.
        """
        num_bytes = tensor.numel() * tensor.element_size()
        if to is Place.device:
            self.traffic.h2d_bytes += num_bytes
            target = self.device
        else:
            self.traffic.d2h_bytes += num_bytes
            target = torch.device("cpu")
        if out is not None:
            return out.copy_(tensor, non_blocking=non_blocking)
        with self.placing(to):
            return tensor.to(target, non_blocking=non_blocking, copy=True)
