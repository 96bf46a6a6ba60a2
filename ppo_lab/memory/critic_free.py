"""No critic: what a return is compared to comes from other episodes, see ``ppo.baselines``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppo_lab.memory.co_resident import CoResident

__all__ = ["CriticFree"]


@dataclass(kw_only=True)
class CriticFree(CoResident):
    """The actor alone, on the device; rollouts of whole episodes take the critic's place."""

    name: ClassVar[str] = "critic_free"
    has_critic: ClassVar[bool] = False
