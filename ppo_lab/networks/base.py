"""What a network is to PPO: a trunk that turns observations into features, with heads on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum

from torch import Tensor, nn

from ppo_lab.networks.layers import Initializer

__all__ = ["Initialization", "NetworkConfig", "Trunk"]


class Initialization(Enum):
    """How weights start."""

    orthogonal = "orthogonal"
    default = "default"


class Trunk(nn.Module, ABC):
    """Maps observations (L, B, O) to features (L, B, F)."""

    num_features: int

    @abstractmethod
    def forward(self, observations: Tensor) -> Tensor:
        """Return the features."""


@dataclass(kw_only=True)
class NetworkConfig(ABC):
    """A kind of network; its options are fields, what it builds are methods."""

    init: Initialization = Initialization.orthogonal
    """orthogonal: gain sqrt(2) in the trunk, 0.01 on the policy head, 1 on the value head, biases
    0 ("The 37 implementation details", core detail 2); default: torch's uniform initialisation."""

    @abstractmethod
    def build_trunk(self, observation_size: int, initializer: Initializer) -> Trunk:
        """Return a new trunk with its weights on the initializer's device."""

    @abstractmethod
    def check(self) -> None:
        """Raise ``ConfigError`` for options that no network can be built from."""

    @abstractmethod
    def num_trunk_parameters(self, observation_size: int) -> int:
        """Return the number of parameters of one lane's trunk, without building it."""
