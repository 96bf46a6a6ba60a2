"""What counted memory is called: categories, networks, peaks.

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
    """What memory is for."""

    weights = "weights"
    gradients = "gradients"
    optimizer = "optimizer"
    """Adam's moments and step counts."""
    activations = "activations"
    """What a forward pass keeps for its backward pass, and what the backward pass computes."""
    rollout = "rollout"
    """What was collected, with advantages and value targets."""
    environment = "environment"
    """What the environments keep between steps, running statistics too."""
    workspace = "workspace"
    """The rest: noise, random orders, the minibatch in use, the update's log, temporaries."""


class MemoryKey(NamedTuple):
    """A category and the network it belongs to: actor, critic, trunk, or none."""

    category: Category
    network: str | None = None


class HostBytes(NamedTuple):
    """Bytes that would lie in the host's memory beside a device."""

    pinned: int
    """Page-locked; each block rounded up to a power of two, as torch's allocator does."""
    pageable: int

    @property
    def total(self) -> int:
        """Both kinds."""
        return self.pinned + self.pageable


@dataclass(frozen=True)
class Peak:
    """The most device memory held at once, and what it was made of."""

    total: int
    """Bytes."""
    phase: str
    doing: str
    """What ran at that moment, such as a forward or backward pass, and the operation."""
    shares: dict[MemoryKey, int]
    """Bytes by category and network; they add up to ``total``."""

    def by_category(self) -> dict[Category, int]:
        """Return bytes by category, in the categories' order, absent ones as 0."""
        sums = dict.fromkeys(Category, 0)
        for share, num_bytes in self.shares.items():
            sums[share.category] += num_bytes
        return sums


class Allocation:
    """One storage, and whose it is."""

    __slots__ = ("in_host", "is_pinned", "num_bytes", "shares")

    def __init__(
        self, num_bytes: int, share: MemoryKey, *, in_host: bool, is_pinned: bool = False
    ) -> None:
        """Belong to ``share`` alone; ``num_bytes`` as the allocator rounds them."""
        self.num_bytes, self.in_host, self.is_pinned = num_bytes, in_host, is_pinned
        self.shares: tuple[tuple[MemoryKey, int], ...] = ((share, num_bytes),)


def replay(
    before: Iterable[Allocation], events: Iterable[tuple[Allocation, bool]]
) -> list[Allocation]:
    """Return the blocks alive after ``events``: births (True) and deaths in their order."""
    alive = dict.fromkeys(before)
    for block, is_born in events:
        if is_born:
            alive[block] = None
        else:
            del alive[block]
    return list(alive)


def sum_by_key(blocks: Iterable[Allocation]) -> dict[MemoryKey, int]:
    """Return bytes by share."""
    sums: dict[MemoryKey, int] = defaultdict(int)
    for block in blocks:
        for share, num_bytes in block.shares:
            sums[share] += num_bytes
    return dict(sums)
