"""Networks that read sequences: their features depend on all observations since an episode's start.

Such a policy acts with a *memory* (a hidden state, or the keys and values of a transformer) and
trains on whole sequences: its minibatches are environments over time, not single steps.

Shapes: L = lanes, B = sequences per lane, T = steps of a sequence, O = observation size,
F = features.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ppo_lab.networks.base import Trunk

__all__ = ["Memory", "SequenceTrunk", "Sequences"]

Memory = tuple[Any, ...]
"""What a trunk remembers of B sequences. If a memory outlives a rollout it consists of tensors
(L, B, …), so that single lanes and sequences can be selected."""


class Sequences(NamedTuple):
    """The input of a model that reads sequences: B of T steps per lane."""

    observations: Tensor  # (L, B, T, O)
    starts: Tensor | None  # (L, B, T) bool: where an episode begins; None: at the first step only
    actor_memory: Memory | None = None  # before the first step; None for an empty one
    critic_memory: Memory | None = None  # the same, of a critic with its own trunk


class SequenceTrunk(Trunk):
    """Maps sequences of observations to features; a row is a step of a sequence."""

    outlives_rollout: ClassVar[bool]
    """Whether the memory goes on from one rollout to the next. If not, every rollout must begin
    with the first steps of episodes, and consist of one episode per environment."""

    @abstractmethod
    def empty_memory(self, num_sequences: int, num_steps: int) -> Memory:
        """Return the memory of L * B = L * ``num_sequences`` before an episode's first step.

        ``num_steps`` is the most that will be added to it.
        """

    @abstractmethod
    def read(
        self, observations: Tensor, starts: Tensor | None, memory: Memory | None
    ) -> tuple[Tensor, Memory | None]:
        """Read T more steps of each sequence; return features and the memory after them.

        ``observations`` are (L, B, T, O), ``starts`` (L, B, T) as in ``Sequences``; features are
        (L, B, T, F). Without a memory, sequences begin with empty ones and None may be returned.
        """

    def following(
        self, observations: Tensor, starts: Tensor | None, memory: Memory | None, after: Tensor
    ) -> Tensor:
        """Return the features (L, B, T, F) of ``after`` (L, B, T, O), each as the one next step.

        That is: step t of the result follows on steps 0 to t of ``observations``.
        """
        raise NotImplementedError
