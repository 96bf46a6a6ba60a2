"""Adam on the host: weights and gradients on the device, moments and the step in host memory.

Each gradient step copies the gradients to the host (4 B per parameter in float32) and the new
weights to the device (4 B); the moments are never copied. Gradient clipping, which torchao's
CPUOffloadOptimizer leaves out, is exact: the norm is taken on the device over whole gradients, and
the host's fused AdamW divides the gradients by the inverse of the clip coefficient as it reads them
(its ``grad_scale``), without another pass over them. The optimizer itself is in ``host_adam.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.memory.base import MemoryStrategy, ParameterCost, clip_groups
from ppo_lab.memory.host_adam import HostAdam
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.adam import LaneOptimizer

__all__ = ["OffloadedOptimizer"]


@dataclass(kw_only=True)
class OffloadedOptimizer(MemoryStrategy):
    """Two networks on the device; Adam's moments and step in host memory."""

    name: ClassVar[str] = "offloaded_optimizer"
    cost: ClassVar[ParameterCost] = ParameterCost(
        device=2,  # weight, gradient
        host=4,  # a copy of both, two moments
        bus_per_step=2,  # gradient to the host, weight to the device
    )
    optimizer_place: ClassVar[Place] = Place.host
    max_lanes: ClassVar[int | None] = 1

    pin_memory: bool = True
    """Page-locked host memory where there is CUDA: copies run at the bus's full speed and beside
    other work. false where locked memory is scarce; pageable copies take about twice as long."""

    def build_optimizer(
        self, model: ActorCritic, placement: Placement, *, eps: float, separate_grad_clip: bool
    ) -> LaneOptimizer:
        """Return Adam on the host; the weights are copied to the host once."""
        groups = clip_groups(model, separate=separate_grad_clip)
        return HostAdam(*groups, placement=placement, eps=eps, pin_memory=self.pin_memory)
