"""Adam's moments and step in host memory, of all parameters; see ``memory.host_adam``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppo_lab.devices.placement import Place
from ppo_lab.memory.co_resident import CoResident

__all__ = ["OffloadedOptimizer"]


@dataclass(kw_only=True)
class OffloadedOptimizer(CoResident):
    """Two networks on the device; Adam's moments and step in host memory."""

    name: ClassVar[str] = "offloaded_optimizer"
    optimizer_place: ClassVar[Place] = Place.host
    max_lanes: ClassVar[int | None] = 1

    offload_fraction: float = 1.0
    """Share of the parameters whose Adam moments and step are in host memory, 0 to 1; see
    ``MemoryStrategy``."""
    pin_memory: bool = True
    """Page-locked host memory where there is CUDA: copies run at the bus's full speed and beside
    other work. false where locked memory is scarce; pageable copies take about twice as long."""

    @property
    def pins_memory(self) -> bool:
        """See ``CoResident.pins_memory``."""
        return self.pin_memory
