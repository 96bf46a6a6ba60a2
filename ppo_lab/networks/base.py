"""What a network is to PPO: a trunk that turns observations into features, with heads on it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppo_lab.networks.layers import Initializer

__all__ = ["Initialization", "NetworkConfig", "Trunk"]


class Initialization(Enum):
    """How weights start."""

    orthogonal = "orthogonal"
    default = "default"


class Trunk(nn.Module, ABC):
    """Maps observations (L, B, O) to features (L, B, F), in stages one after the other."""

    num_features: int
    num_stages: int
    checkpoints_activations: bool = False
    """Whether the backward pass computes stages again instead of keeping what they left."""

    @abstractmethod
    def run_stages(self, x: Tensor, begin: int, end: int) -> Tensor:
        """Apply the stages from ``begin`` to ``end`` to the output of the one before them."""

    def forward(self, observations: Tensor) -> Tensor:
        """Return the features.

        Checkpointed, only the outputs at the borders of segments of about sqrt(stages) are kept
        (arXiv:1604.06174, section 4.1). The last segment is kept whole: its backward pass comes
        first, when nothing has been freed yet that computing it again could use.
        """
        if not (self.checkpoints_activations and torch.is_grad_enabled()):
            return self.run_stages(observations, 0, self.num_stages)
        x, borders = observations, self.segment_borders()
        for begin, end in pairwise(borders[:-1]):
            x = checkpoint(
                self.run_stages, x, begin, end, use_reentrant=False, preserve_rng_state=False
            )
        return self.run_stages(x, borders[-2], borders[-1])

    @property
    def can_checkpoint(self) -> bool:
        """Whether there are enough stages for a second segment: three or more."""
        return len(self.segment_borders()) > 2

    def segment_borders(self) -> list[int]:
        """Return 0, the stages at which a segment ends, and ``num_stages``."""
        size = math.ceil(math.sqrt(self.num_stages))
        return [*range(0, self.num_stages, size), self.num_stages]


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
