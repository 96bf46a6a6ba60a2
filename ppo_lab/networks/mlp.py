"""The multilayer perceptron, for vector observations.

Shapes: L = lanes, B = rows per lane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

import torch
from torch import Tensor, nn

from ppo_lab.envs.base import EnvSpec
from ppo_lab.networks.base import NetworkConfig, Trunk
from ppo_lab.networks.layers import Initializer, LaneLinear, quick_tanh
from ppo_lab.utils.errors import ConfigError

__all__ = ["Activation", "Mlp", "MlpConfig"]


class Activation(Enum):
    """The nonlinearity after each hidden layer."""

    tanh = "tanh"
    relu = "relu"


class Mlp(Trunk):
    """Linear layers, each followed by the activation."""

    def __init__(self, layers: list[LaneLinear], activation: Activation) -> None:
        """Apply ``layers`` in order."""
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._stages = list(layers)  # faster to iterate than a ModuleList
        self.num_features = layers[-1].weight.shape[-1]
        self.num_stages = len(layers)
        self._activate = quick_tanh if activation is Activation.tanh else torch.relu

    def run_stages(self, x: Tensor, begin: int, end: int) -> Tensor:
        """Apply the layers from ``begin`` to ``end``, each with its activation."""
        for layer in self._stages[begin:end]:
            # Not layer(x): the overhead of Module.__call__ equals a small matrix product.
            x = self._activate(layer.forward(x))
        return x


@dataclass(kw_only=True)
class MlpConfig(NetworkConfig):
    """Options of a multilayer perceptron.

    Example:
        >>> from ppo_lab.envs.base import DiscreteActions
        >>> spec = EnvSpec(4, DiscreteActions(2))
        >>> MlpConfig(hidden=[64, 64]).num_trunk_parameters(spec)  # (4 + 1) * 64 + (64 + 1) * 64
        4480
    """

    hidden: list[int] = field(default_factory=lambda: [64, 64])
    """Widths of the hidden layers, for actor and critic each (or for their shared trunk).
    [64, 64] suits classic control and MuJoCo; wider is slower and rarely better there."""
    activation: Activation = Activation.tanh
    """tanh is PPO's usual choice for vector observations; relu is common in wide networks."""

    def check(self) -> None:
        """Raise ``ConfigError`` unless there is at least one layer and all widths are positive."""
        if not self.hidden or any(width < 1 for width in self.hidden):
            allowed = "must be a list of one or more widths >= 1"
            raise ConfigError("network.hidden", self.hidden, allowed)

    def build_trunk(self, spec: EnvSpec, initializer: Initializer) -> Mlp:
        """Return the trunk: one layer per hidden width, with new weights."""
        sizes = pairwise([spec.observation_size, *self.hidden])
        layers = [self.linear(initializer, *size, gain=math.sqrt(2.0)) for size in sizes]
        return Mlp(layers, self.activation)

    def num_trunk_parameters(self, spec: EnvSpec) -> int:
        """Return the number of weights and biases."""
        sizes = pairwise([spec.observation_size, *self.hidden])
        return sum((num_inputs + 1) * num_outputs for num_inputs, num_outputs in sizes)
