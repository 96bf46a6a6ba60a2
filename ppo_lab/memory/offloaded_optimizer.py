"""Adam on the host: the device keeps weights and gradients, the moments never cross the bus.

Each gradient step sends the gradients down (4 B per parameter in float32) and the new weights up
(4 B). What torchao's CPUOffloadOptimizer leaves out, gradient clipping, is exact here: norms are
taken on the device over whole gradients, and the host's fused AdamW divides by the inverse of the
clip coefficient as it reads them (its ``grad_scale``), so no extra pass over the gradients is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppo_lab.devices.placement import Place, Placement, Traffic
from ppo_lab.memory.base import MemoryStrategy, Workload, clip_groups
from ppo_lab.memory.host_adam import HostAdam
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.adam import LaneOptimizer

__all__ = ["OffloadedOptimizer"]


@dataclass(kw_only=True)
class OffloadedOptimizer(MemoryStrategy):
    """Two networks on the device, Adam's moments and step in pinned host memory."""

    name: ClassVar[str] = "offloaded_optimizer"
    optimizer_place: ClassVar[Place] = Place.host
    max_lanes: ClassVar[int | None] = 1

    pin_memory: bool = True
    """Page-locked host memory where there is CUDA: copies run at the bus's full speed and beside
    other work. false where locked memory is scarce; pageable copies take about twice as long."""

    def build_optimizer(
        self, model: ActorCritic, placement: Placement, *, eps: float, separate_grad_clip: bool
    ) -> LaneOptimizer:
        """Return Adam on the host; building it sends the weights down once."""
        groups = clip_groups(model, separate=separate_grad_clip)
        return HostAdam(*groups, placement=placement, eps=eps, pin_memory=self.pin_memory)

    def step_traffic(self, workload: Workload) -> Traffic:
        """Return weights up; gradients, lr, on/off switch and clip coefficients down."""
        num_bytes = workload.num_parameters * workload.element_size
        num_scalars = 2 + workload.num_clip_groups
        return Traffic(num_bytes, num_bytes + num_scalars * workload.element_size)
