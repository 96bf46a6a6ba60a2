"""Everything on the device: the usual layout of PPO, and the fastest where it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppo_lab.devices.placement import Placement
from ppo_lab.memory.base import MemoryStrategy, ParameterCost, clip_groups
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.adam import LaneAdam, LaneOptimizer

__all__ = ["CoResident", "SharedTrunk"]


@dataclass(kw_only=True)
class CoResident(MemoryStrategy):
    """Two networks with their gradients and Adam state, all on the device."""

    name: ClassVar[str] = "co_resident"
    cost: ClassVar[ParameterCost] = ParameterCost(device=4)  # weight, gradient, two moments

    def build_optimizer(
        self,
        model: ActorCritic,
        placement: Placement,  # noqa: ARG002 - nothing is copied
        *,
        eps: float,
        separate_grad_clip: bool,
    ) -> LaneOptimizer:
        """Return Adam on the device."""
        return LaneAdam(*clip_groups(model, separate=separate_grad_clip), eps=eps)


@dataclass(kw_only=True)
class SharedTrunk(CoResident):
    """One trunk with two heads on the device; both losses add to the trunk's gradient."""

    name: ClassVar[str] = "shared_trunk"
    shares_trunk: ClassVar[bool] = True
