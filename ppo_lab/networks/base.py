"""Interface of networks: a trunk maps observations to features, heads map features to outputs.

Shapes: L = lanes, B = rows per lane, O = observation size, F = features per row.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppo_lab.envs.base import EnvSpec
from ppo_lab.networks.layers import Initializer, LaneLinear
from ppo_lab.utils.errors import ConfigError

__all__ = ["NORMAL_STD", "Initialization", "NetworkConfig", "Trunk"]

NORMAL_STD = 0.02  # of GPT-2's weights, github.com/openai/gpt-2, src/model.py


class Initialization(Enum):
    """Initialisation of the weights."""

    orthogonal = "orthogonal"
    default = "default"
    normal = "normal"


class Trunk(nn.Module, ABC):
    """Maps observations (L, B, O) to features (L, B, F) in consecutive stages."""

    num_features: int  # F
    num_stages: int
    checkpoints_activations: bool = False  # the backward pass recomputes stages

    @abstractmethod
    def run_stages(self, x: Tensor, begin: int, end: int) -> Tensor:
        """Apply stages ``begin`` to ``end`` (exclusive) to the output of the stage before."""

    def forward(self, observations: Tensor) -> Tensor:
        """Return the features (L, B, F) of ``observations`` (L, B, O).

        With activation checkpointing, only the outputs of segments of about sqrt(stages) are
        stored (arXiv:1604.06174, section 4.1), and all of the last: its backward pass comes first.
        """
        if not (self.checkpoints_activations and torch.is_grad_enabled()):
            return self.run_stages(observations, 0, self.num_stages)
        x, borders = observations, self.segment_borders()
        run = partial(checkpoint, self.run_stages, use_reentrant=False, preserve_rng_state=False)
        for begin, end in pairwise(borders[:-1]):
            x = run(x, begin, end)
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
    """Options of a kind of network, and the trunk they build."""

    max_lanes: ClassVar[int | None] = None
    """Most lanes in a stack; None for any number."""
    reads_sequences: ClassVar[bool] = False
    """Whether the trunk is a ``SequenceTrunk``."""
    is_pretrained: ClassVar[bool] = False
    """Whether the options determine the weights: they are the same for all seeds."""

    init: Initialization = Initialization.orthogonal
    """orthogonal: gain sqrt(2) in the trunk, 0.01 on the policy head, 1 on the value head, biases
    0 ("The 37 implementation details", core detail 2); default: torch's uniform initialisation;
    normal: deviation 0.02 times 0.01 on the policy head, biases 0, as in transformers."""

    def linear(
        self, initializer: Initializer, num_inputs: int, num_outputs: int, *, gain: float
    ) -> LaneLinear:
        """Return a layer with new weights; ``gain`` does not apply to uniform ones."""
        if self.init is Initialization.orthogonal:
            return LaneLinear(initializer.orthogonal(num_inputs, num_outputs, gain))
        if self.init is Initialization.normal:
            return LaneLinear(initializer.normal(num_inputs, num_outputs, gain * NORMAL_STD))
        return LaneLinear(initializer.uniform(num_inputs, num_outputs))

    @abstractmethod
    def build_trunk(self, spec: EnvSpec, initializer: Initializer) -> Trunk:
        """Build a trunk for the observations of ``spec`` with weights from ``initializer``."""

    def build_trunks(self, spec: EnvSpec, initializer: Initializer, number: int) -> Sequence[Trunk]:
        """Build the actor's trunk and, if ``number`` is 2, the critic's."""
        return [self.build_trunk(spec, initializer) for _ in range(number)]

    def build_policy_head(
        self, trunk: Trunk, initializer: Initializer, num_parameters: int
    ) -> LaneLinear:
        """Build what maps the features of the actor's ``trunk`` to ``num_parameters`` per row.

        The small gain makes the initial policy almost uniform.
        """
        return self.linear(initializer, trunk.num_features, num_parameters, gain=0.01)

    def export(self, actor: Trunk, policy_head: LaneLinear, folder: Path) -> None:  # noqa: B027 (the same)
        """Save the policy in the form of the library that its weights came from, if any."""

    @abstractmethod
    def check(self) -> None:
        """Raise ``ConfigError`` if no network can be built from the options."""

    def check_env(self, spec: EnvSpec) -> None:
        """Raise ``ConfigError`` if a trunk cannot read the observations of ``spec``."""
        if spec.num_tokens is not None:
            allowed = "reads numbers, not tokens: choose a transformer, such as network=gpt_tiny"
            raise ConfigError("network", type(self).__name__, allowed)

    def check_num_steps(self, num_steps: int) -> None:  # noqa: B027 (a default, not an omission)
        """Raise ``ConfigError`` if a sequence of ``num_steps`` is too long."""

    @abstractmethod
    def num_trunk_parameters(self, spec: EnvSpec) -> int:
        """Return the number of parameters of one lane's trunk, without building it."""
