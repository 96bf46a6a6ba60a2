"""The queue of run groups that wait for lanes, and the choice of those that start next."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence

from ppo_lab.runner.group import RunGroup

__all__ = ["GroupQueue"]


class GroupQueue:
    """Waiting run groups in order of arrival.

    Groups with the key of the current program can take its free lanes. The groups of a stack that
    failed start again in two halves, each with a program of its own that takes no others.
    """

    def __init__(self, max_lanes: int) -> None:
        """Plan programs of at most ``max_lanes`` lanes, or of one group if it needs more."""
        self.max_lanes = max_lanes
        self.num_more: int | None = None
        """Maximum number of runs that may still be put; None if unknown."""
        self._waiting: deque[RunGroup] = deque()
        self._halves: deque[list[RunGroup]] = deque()
        self._key: str | None = None  # of the current program; None if it takes no other groups

    @property
    def num_wanted(self) -> int:
        """Lanes that the waiting groups need."""
        waiting = itertools.chain(self._waiting, *self._halves)
        return sum(len(group.configs) for group in waiting)

    def put(self, group: RunGroup) -> None:
        """Append ``group``."""
        self._waiting.append(group)

    def put_again(self, groups: Sequence[RunGroup], num_parts: int = 2) -> None:
        """Schedule the groups of a failed stack again, in halves or as one."""
        size = max(1, math.ceil(len(groups) / num_parts))
        self._halves += [list(groups[i : i + size]) for i in range(0, len(groups), size)]

    def remove(self, group: RunGroup) -> None:
        """Remove ``group`` if it waits."""
        self._waiting = deque(other for other in self._waiting if other is not group)
        halves = ([other for other in half if other is not group] for half in self._halves)
        self._halves = deque(half for half in halves if half)

    def can_reuse(self, num_lanes: int) -> bool:
        """Return whether the next group fits the current program, of ``num_lanes`` free lanes."""
        ours = [group for group in self._waiting if group.key == self._key]
        return not self._halves and bool(ours) and len(ours[0].configs) <= num_lanes

    def take(self, num_free: int) -> list[RunGroup]:
        """Return the groups that start in ``num_free`` lanes of the current program."""
        chosen = []
        for group in [g for g in self._waiting if g.key == self._key]:
            num_free -= len(group.configs)
            if num_free < 0:  # smaller ones behind it must not overtake it again and again
                break
            chosen.append(group)
            self._waiting.remove(group)
        return chosen

    def take_first(self) -> list[RunGroup]:
        """Return the groups that start a new program."""
        self._key = None
        if self._halves:
            return self._halves.popleft()
        if not self._waiting:
            return []
        first = self._waiting[0]
        if first.configs[0].lane_limit is not None:  # its lanes cannot be replaced
            return [self._waiting.popleft()]
        self._key = first.key
        return self.take(max(self.max_lanes, len(first.configs)))

    def num_lanes(self, groups: Sequence[RunGroup]) -> int:
        """Return the lanes of a new program for ``groups``: with room for others to come.

        Groups that are put later probably have the key of the last program that was asked for.
        """
        needed = sum(len(group.configs) for group in groups)
        is_last = all(group.key == self._key for group in self._waiting)
        if self._key is None or not is_last:
            return needed
        size = len(groups[0].configs)
        widest = self.max_lanes - self.max_lanes % size
        if self.num_more is not None:
            widest = min(widest, needed + self.num_more)
        return max(needed, widest)
