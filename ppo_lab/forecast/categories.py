"""Names and sums of counted memory: categories, networks, peaks.

Every number is bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

__all__ = ["Allocation", "Category", "HostBytes", "MemoryKey", "Peak", "replay", "sum_by_key"]


class Category(Enum):
    """What memory is used for."""

    weights = "weights"
    gradients = "gradients"
    optimizer = "optimizer"
    """Adam's moments and step counts."""
    activations = "activations"
    """What a forward pass keeps for its backward pass, and what the backward pass computes."""
    rollout = "rollout"
    """What was collected, with advantages and value targets."""
    environment = "environment"
    """The environments' state, running statistics included."""
    workspace = "workspace"
    """The rest: noise, permutations, the current minibatch, the update's log, temporaries."""


class MemoryKey(NamedTuple):
    """A category and the network it belongs to: actor, critic, trunk, or None."""

    category: Category
    network: str | None = None


class HostBytes(NamedTuple):
    """Host memory of a run on a device."""

    pinned: int
    """Page-locked; each block rounded up to a power of two, as torch's allocator does."""
    pageable: int

    @property
    def total(self) -> int:
        """Both kinds."""
        return self.pinned + self.pageable


@dataclass(frozen=True)
class Peak:
    """The most device memory in use at once, and its parts."""

    total: int
    phase: str
    doing: str
    """What ran at that moment: forward or backward pass, or the optimizer's step, and the
    operation."""
    by_key: dict[MemoryKey, int]
    """Parts by category and network; they add up to ``total``."""

    def by_category(self) -> dict[Category, int]:
        """Return bytes by category, in the order of ``Category``; 0 for absent ones."""
        sums = dict.fromkeys(Category, 0)
        for key, num_bytes in self.by_key.items():
            sums[key.category] += num_bytes
        return sums


class Allocation:
    """One storage, with its size and use."""

    __slots__ = ("in_host", "is_pinned", "num_bytes", "parts")

    def __init__(
        self, num_bytes: int, key: MemoryKey, *, in_host: bool, is_pinned: bool = False
    ) -> None:
        """Attribute all ``num_bytes``, as rounded by the allocator, to ``key``."""
        self.num_bytes, self.in_host, self.is_pinned = num_bytes, in_host, is_pinned
        self.parts: tuple[tuple[MemoryKey, int], ...] = ((key, num_bytes),)


def replay(
    before: Iterable[Allocation], events: Iterable[tuple[Allocation, bool]]
) -> list[Allocation]:
    """Return what is allocated after ``events``: allocations (True) and frees in their order."""
    alive = dict.fromkeys(before)
    for allocation, is_new in events:
        if is_new:
            alive[allocation] = None
        else:
            del alive[allocation]
    return list(alive)


def sum_by_key(allocations: Iterable[Allocation]) -> dict[MemoryKey, int]:
    """Return bytes by category and network."""
    sums: dict[MemoryKey, int] = defaultdict(int)
    for allocation in allocations:
        for key, num_bytes in allocation.parts:
            sums[key] += num_bytes
    return dict(sums)
