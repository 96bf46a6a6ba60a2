"""Names and sums of counted memory: categories, networks, peaks.

Every number is bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

__all__ = ["Allocation", "Category", "HostBytes", "MemoryKey", "Peak", "sum_by_key"]


class Category(Enum):
    """What memory is used for."""

    weights = "weights"
    gradients = "gradients"
    optimizer = "optimizer"
    """Adam's moments and step counts."""
    activations = "activations"
    """What a forward pass keeps for its backward pass, and what the backward pass computes."""
    logits = "logits"
    """Of tokens, and what is computed from them element by element, gradients included."""
    cache = "cache"
    """What a policy that reads sequences remembers while it acts, such as keys and values."""
    rollout = "rollout"
    """What was collected, with advantages and value targets."""
    environment = "environment"
    """The environments' state, running statistics included."""
    workspace = "workspace"
    """The rest: noise, permutations, the current minibatch, the update's log, temporaries."""


class MemoryKey(NamedTuple):
    """A category and the network it belongs to: actor, critic, trunk, reference, or None."""

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

    def size_of(self, part: Category | MemoryKey) -> int:
        """Return the bytes of a category, or of one network's part of it."""
        if isinstance(part, Category):
            return self.by_category()[part]
        return self.by_key.get(part, 0)

    def by_category(self) -> dict[Category, int]:
        """Return bytes by category, in the order of ``Category``; 0 for absent ones."""
        sums = dict.fromkeys(Category, 0)
        for key, num_bytes in self.by_key.items():
            sums[key.category] += num_bytes
        return sums


@dataclass(eq=False, slots=True)
class Allocation:
    """One storage, with its size and use."""

    num_bytes: int
    """As rounded by the allocator."""
    parts: tuple[tuple[MemoryKey, int], ...]
    """Uses and their bytes; they add up to ``num_bytes``."""
    in_host: bool
    is_pinned: bool = False


def sum_by_key(allocations: Iterable[Allocation]) -> dict[MemoryKey, int]:
    """Return bytes by category and network."""
    sums: dict[MemoryKey, int] = defaultdict(int)
    for allocation in allocations:
        for key, num_bytes in allocation.parts:
            sums[key] += num_bytes
    return dict(sums)
