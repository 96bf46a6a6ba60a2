"""Everything on the device: the usual layout of PPO, and the fastest where it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppo_lab.devices.placement import Placement
from ppo_lab.memory.base import MemoryStrategy, clip_groups
from ppo_lab.memory.host_adam import HostAdam
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.adam import LaneOptimizer

__all__ = ["CoResident", "SharedTrunk"]


@dataclass(kw_only=True)
class CoResident(MemoryStrategy):
    """Two networks with their gradients and Adam state, all on the device unless options differ."""

    name: ClassVar[str] = "co_resident"

    @property
    def pins_memory(self) -> bool:
        """Whether the host memory of what is offloaded is page-locked where there is CUDA."""
        return True

    def build_optimizer(
        self,
        model: ActorCritic,
        placement: Placement,
        *,
        eps: float,
        clips: bool,
        separate_grad_clip: bool,
    ) -> LaneOptimizer:
        """Return Adam on the device, or partly on the host."""
        groups = clip_groups(model, separate=separate_grad_clip)
        if self.offload_fraction == 0.0:
            return self.build_adam(*groups, eps=eps, clips=clips)
        return HostAdam(
            *groups,
            placement=placement,
            eps=eps,
            pin_memory=self.pins_memory,
            fraction=self.offload_fraction,
        )


@dataclass(kw_only=True)
class SharedTrunk(CoResident):
    """One trunk with two heads on the device; both losses add to the trunk's gradient."""

    name: ClassVar[str] = "shared_trunk"
    shares_trunk: ClassVar[bool] = True
