"""Placement of tensors on host or device, and all copies between the two.

Every copy goes through ``Placement.move``, which counts its bytes by direction. On a CPU-only
machine both sides are the same memory, but a move still copies and counts, so that the traffic of a
memory strategy can be tested there. ``forecast.ledger`` reads from ``Placement.placed`` to which
side new tensors belong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor

__all__ = ["Place", "Placement", "Traffic", "copy_exactly", "tensors_of"]


class Place(Enum):
    """A side of the bus."""

    host = "host"
    device = "device"


@dataclass
class Traffic:
    """Bytes moved since the start, by direction."""

    h2d_bytes: int = 0
    d2h_bytes: int = 0

    @property
    def total(self) -> int:
        """Bytes in both directions."""
        return self.h2d_bytes + self.d2h_bytes

    def since(self, earlier: Traffic) -> Traffic:
        """Return the difference to ``earlier``, a copy of this counter."""
        return Traffic(self.h2d_bytes - earlier.h2d_bytes, self.d2h_bytes - earlier.d2h_bytes)


@dataclass
class Placement:
    """The training device, its host, and the traffic between them."""

    device: torch.device
    traffic: Traffic = field(default_factory=Traffic)
    placed: tuple[Place, bool] | None = None
    """Side of the tensors created now, and whether they are pinned; None if not declared."""

    @property
    def is_cuda(self) -> bool:
        """Whether host and device have separate memories."""
        return self.device.type == "cuda"

    @contextmanager
    def placing(self, place: Place, *, pin: bool = False) -> Iterator[None]:
        """Declare that tensors created inside lie in ``place``, if both sides are one memory."""
        before, self.placed = self.placed, (place, pin)
        try:
            yield
        finally:
            self.placed = before

    def empty_host(self, *shape: int, dtype: torch.dtype, pin: bool) -> Tensor:
        """Return an uninitialised host tensor; ``pin`` page-locks it if the device is CUDA."""
        with self.placing(Place.host, pin=pin):
            return torch.empty(shape, dtype=dtype, pin_memory=pin and self.is_cuda)

    def empty_host_like(self, tensor: Tensor, *, pin: bool) -> Tensor:
        """Return an uninitialised host tensor of the shape and type of ``tensor``."""
        return self.empty_host(*tensor.shape, dtype=tensor.dtype, pin=pin)

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


def copy_exactly(target: Tensor, source: Tensor, name: str) -> None:
    """Copy ``source`` into ``target``; raise ``ValueError`` if its shape or type is another.

    For checkpoints: the bytes do not count as traffic, since records must not depend on them.
    """
    for attribute in ("shape", "dtype"):
        wanted, given = getattr(target, attribute), getattr(source, attribute)
        if wanted != given:
            raise ValueError(f"{name} has {attribute} {given}, this run needs {wanted}")
    target.copy_(source)


def tensors_of(values: Any) -> Iterator[Tensor]:  # noqa: ANN401 - any nest
    """Return the tensors in nested tuples, lists and dictionaries."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list, dict)):
        for value in values.values() if isinstance(values, dict) else values:
            yield from tensors_of(value)
