"""Everything on the device: the classic, and the fastest where it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppo_lab.devices.placement import Placement
from ppo_lab.memory.base import MemoryStrategy, clip_groups
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.adam import LaneAdam, LaneOptimizer

__all__ = ["CoResident", "SharedTrunk"]


@dataclass(kw_only=True)
class CoResident(MemoryStrategy):
    """Two networks, their gradients and their Adam state side by side: 16 B per parameter."""

    name: ClassVar[str] = "co_resident"

    def build_optimizer(
        self,
        model: ActorCritic,
        placement: Placement,  # noqa: ARG002 - nothing moves
        *,
        eps: float,
        separate_grad_clip: bool,
    ) -> LaneOptimizer:
        """Return Adam on the device."""
        return LaneAdam(*clip_groups(model, separate=separate_grad_clip), eps=eps)


@dataclass(kw_only=True)
class SharedTrunk(CoResident):
    """Adam on the device as with ``co_resident``; the two losses meet in the trunk's gradient."""

    name: ClassVar[str] = "shared_trunk"
    shares_trunk: ClassVar[bool] = True
