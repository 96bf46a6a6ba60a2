"""The placeholder ``memory=auto``, replaced by a strategy before the run begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppo_lab.memory.base import MemoryStrategy
from ppo_lab.ppo.adam import LaneOptimizer

__all__ = ["AutoMemory"]


@dataclass(kw_only=True)
class AutoMemory(MemoryStrategy):
    """The choice of a strategy by forecast and budget.

    ``ppo_lab.forecast.budget.resolve_memory`` states the rule and applies it.
    """

    name: ClassVar[str] = "auto"

    def build_optimizer(self, *_: object, **__: object) -> LaneOptimizer:
        """Never called: every run has a strategy."""
        raise AssertionError("memory=auto was not resolved")
