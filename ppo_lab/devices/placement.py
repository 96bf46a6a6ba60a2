"""Placement of tensors on host or device, and all copies between the two.

Every copy goes through ``Placement.move``, which counts its bytes by direction. On a CPU-only
machine both sides are the same memory, but a move still copies and counts, so that the traffic of a
memory strategy can be tested there. An observer of memory (``forecast.ledger``) is given the place
of every tensor created here.
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
        """Return the difference to ``earlier``, a copy of this counter."""
        return Traffic(self.h2d_bytes - earlier.h2d_bytes, self.d2h_bytes - earlier.d2h_bytes)

    def plus(self, other: Traffic, times: tuple[int, int] = (1, 1)) -> Traffic:
        """Return the sum with ``other``, scaled by the fraction ``times``, in whole bytes."""
        many, parts = times
        h2d_bytes, h2d_rest = divmod(other.h2d_bytes * many, parts)
        d2h_bytes, d2h_rest = divmod(other.d2h_bytes * many, parts)
        assert h2d_rest == d2h_rest == 0
        return Traffic(self.h2d_bytes + h2d_bytes, self.d2h_bytes + d2h_bytes)


class Watcher(Protocol):
    """Receives the place of new tensors."""

    def placing(self, place: Place, *, is_pinned: bool = False) -> AbstractContextManager[None]:
        """Treat tensors created inside as tensors in ``place``."""


@dataclass
class Placement:
    """The training device, its host, and the traffic between them."""

    device: torch.device
    traffic: Traffic = field(default_factory=Traffic)
    watcher: Watcher | None = None

    @property
    def is_cuda(self) -> bool:
        """Whether host and device have separate memories."""
        return self.device.type == "cuda"

    def placing(self, place: Place, *, pin: bool = False) -> AbstractContextManager[None]:
        """Declare that tensors created inside lie in ``place``, if both sides are one memory."""
        if self.watcher is None:
            return nullcontext()
        return self.watcher.placing(place, is_pinned=pin)

    def empty_host(self, *shape: int, dtype: torch.dtype, pin: bool) -> Tensor:
        """Return an uninitialised host tensor; ``pin`` page-locks it if the device is CUDA."""
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

        The result never shares storage with ``tensor``; it is ``out`` if that is given. With
        ``non_blocking``, a copy to pinned memory is complete only after a synchronisation.
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
