"""One trunk with a policy head and a value head: about half of everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppo_lab.memory.co_resident import CoResident

__all__ = ["SharedTrunk"]


@dataclass(kw_only=True)
class SharedTrunk(CoResident):
    """Adam on the device as with ``co_resident``; the two losses meet in the trunk's gradient."""

    name: ClassVar[str] = "shared_trunk"
    shares_trunk: ClassVar[bool] = True
