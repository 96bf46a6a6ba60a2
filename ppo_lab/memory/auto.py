"""The strategy that is not chosen yet: ``memory=auto`` is replaced before the run begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppo_lab.devices.placement import Placement
from ppo_lab.memory.base import MemoryStrategy
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.adam import LaneOptimizer

__all__ = ["AutoMemory"]


@dataclass(kw_only=True)
class AutoMemory(MemoryStrategy):
    """Stands for the strategy of the same arithmetic that fits and moves least over the bus.

    ``ppo_lab.forecast.budget.resolve_memory`` states the rule and applies it.
    """

    name: ClassVar[str] = "auto"

    def build_optimizer(
        self,
        model: ActorCritic,  # noqa: ARG002 - nothing is built
        placement: Placement,  # noqa: ARG002
        *,
        eps: float,  # noqa: ARG002
        separate_grad_clip: bool,  # noqa: ARG002
    ) -> LaneOptimizer:
        """Never called: a run has a strategy."""
        raise AssertionError("memory=auto was not resolved")
