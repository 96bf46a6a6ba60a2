"""Recurrent networks: one layer of LSTM or GRU cells, whose hidden state is the features.

Shapes: L = lanes, B = sequences per lane, T = steps, O = observation size, H = hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor, nn

from ppo_lab.envs.base import EnvSpec
from ppo_lab.networks.base import NetworkConfig
from ppo_lab.networks.cells import gru_states, lstm_states
from ppo_lab.networks.layers import Initializer, LaneLinear
from ppo_lab.networks.sequences import Memory, SequenceTrunk
from ppo_lab.utils.errors import ConfigError

__all__ = ["Cell", "Recurrent", "RecurrentConfig"]


class Cell(Enum):
    """The kind of recurrent cell."""

    lstm = "lstm"
    gru = "gru"


class Recurrent(SequenceTrunk):
    """A layer of cells. The memory is (h, c) of an LSTM or (h,) of a GRU, each (L, B, H).

    Observations are multiplied for all steps at once; only the products with the hidden state run
    step by step. Under autocast the former are rounded and the states are not: rounding would add
    up over the steps, which are too small to gain from a faster product.
    """

    outlives_rollout: ClassVar[bool] = True
    num_stages = 1

    candidate_bias: nn.Parameter | None  # (L, 1, H), within a GRU's reset gate

    def __init__(self, inputs: LaneLinear, weight: Tensor, cell: Cell) -> None:
        """Use ``inputs`` and recurrent weights (L, H, G * H), G = 4 for LSTM and 3 for GRU.

        The blocks of an LSTM are output, input, forget, candidate; those of a GRU reset, update,
        candidate.
        """
        super().__init__()
        self.inputs = inputs
        self.weight = nn.Parameter(weight)
        self.num_features = weight.shape[1]
        self.candidate_bias = None
        if cell is Cell.gru:
            zeros = weight.new_zeros(len(weight), 1, self.num_features)
            self.candidate_bias = nn.Parameter(zeros)

    def run_stages(self, x: Tensor, begin: int, end: int) -> Tensor:  # noqa: ARG002
        """Return the features (L, B, H) of ``x`` (L, B, O), each the first step of an episode."""
        return self.read(x.unsqueeze(2), None, None)[0].squeeze(2)

    def empty_memory(self, num_sequences: int, num_steps: int) -> Memory:  # noqa: ARG002
        """See ``SequenceTrunk.empty_memory``; zeros, whatever the number of steps."""
        zeros = self.weight.new_zeros(len(self.weight), num_sequences, self.num_features)
        # Two tensors: a memory that is read from a file is written into them.
        return (zeros,) if self.candidate_bias is not None else (zeros, zeros.clone())

    def read(
        self, observations: Tensor, starts: Tensor | None, memory: Memory | None
    ) -> tuple[Tensor, Memory | None]:
        """See ``SequenceTrunk.read``; the memory is emptied before each step in ``starts``."""
        states = self._states(observations.movedim(2, 0), starts, memory)
        return states[0].movedim(0, 2), tuple(state[-1] for state in states)

    def following(
        self, observations: Tensor, starts: Tensor | None, memory: Memory | None, after: Tensor
    ) -> Tensor:
        """See ``SequenceTrunk.following``: one step from the memory after every step."""
        states = self._states(observations.movedim(2, 0), starts, memory)
        num_lanes, num_sequences, num_steps = after.shape[:3]
        # Each step becomes a sequence of its own, which begins with the memory after it.
        sequences = tuple(state.transpose(0, 1).flatten(1, 2) for state in states)
        rows = after.transpose(1, 2).flatten(1, 2).unsqueeze(0)  # (1, L, T * B, O)
        (features,) = self._states(rows, None, sequences)[0]
        return features.view(num_lanes, num_steps, num_sequences, -1).transpose(1, 2)

    def _states(
        self, observations: Tensor, starts: Tensor | None, memory: Memory | None
    ) -> tuple[Tensor, ...]:
        """Return the states (T, L, B, H) after every step of ``observations`` (T, L, B, O)."""
        num_steps, _, num_sequences, _ = observations.shape
        if memory is None:
            memory = self.empty_memory(num_sequences, num_steps)
        rows = self.inputs(observations.transpose(0, 1).flatten(1, 2)).to(self.weight.dtype)
        x = rows.unflatten(1, (num_steps, num_sequences)).transpose(0, 1)
        keep = x.new_ones(*x.shape[:3], 1)
        if starts is not None:
            keep = keep.masked_fill(starts.movedim(2, 0).unsqueeze(-1), 0.0)
        with torch.autocast(x.device.type, enabled=False):
            if self.candidate_bias is None:
                return lstm_states(x, keep, self.weight, *memory)
            of_gates, of_candidate = x.split((2 * self.num_features, self.num_features), -1)
            bias = self.candidate_bias.expand_as(of_candidate)
            x = torch.cat((of_gates, bias, of_candidate), -1)
            return gru_states(x, keep, self.weight, *memory)


@dataclass(kw_only=True)
class RecurrentConfig(NetworkConfig):
    """Options of a recurrent network.

    Example:
        >>> from ppo_lab.envs.base import DiscreteActions
        >>> spec = EnvSpec(2, DiscreteActions(2))
        >>> RecurrentConfig(hidden=64).num_trunk_parameters(spec)  # (2 + 64 + 1) * 4 * 64
        17152
    """

    reads_sequences: ClassVar[bool] = True

    cell: Cell = Cell.lstm
    """lstm has a cell state besides the hidden one; gru has three quarters of its parameters and
    is about as good."""
    hidden: int = 32
    """Size of the hidden state, which is what the policy and value heads read. 32 suits classic
    control with hidden velocities; 128 to 256 are usual for images and MuJoCo."""

    def check(self) -> None:
        """Raise ``ConfigError`` unless the size is positive."""
        if self.hidden < 1:
            raise ConfigError("network.hidden", self.hidden, "must be a size >= 1")

    def build_trunk(self, spec: EnvSpec, initializer: Initializer) -> Recurrent:
        """Return the trunk with new weights.

        Each block is a layer of its own; orthogonal ones have gain sqrt(2) for observations and 1
        for the state. The forget gate's bias is 1, so that an untrained cell remembers (Jozefowicz
        et al. 2015, "An empirical exploration of recurrent network architectures", section 4).
        """
        size, num_blocks = self.hidden, 4 if self.cell is Cell.lstm else 3

        def blocks(num_inputs: int, gain: float) -> Tensor:
            every = (
                self.linear(initializer, num_inputs, size, gain=gain) for _ in range(num_blocks)
            )
            return torch.cat([layer.weight.detach() for layer in every], -1)

        inputs = LaneLinear(blocks(spec.observation_size, math.sqrt(2.0)))
        if self.cell is Cell.lstm:
            with torch.no_grad():
                inputs.bias[..., 2 * size : 3 * size] = 1.0
        return Recurrent(inputs, blocks(size, 1.0), self.cell)

    def num_trunk_parameters(self, spec: EnvSpec) -> int:
        """Return the number of weights and biases."""
        rows = spec.observation_size + self.hidden + 1
        if self.cell is Cell.lstm:
            return rows * 4 * self.hidden
        return (rows * 3 + 1) * self.hidden
