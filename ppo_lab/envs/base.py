"""What an environment is to the trainer: L * N of them, stepped at once, tensors in and out.

Shapes: L = lanes, N = environments per lane, O = observation size, A = action size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ContinuousActions", "DiscreteActions", "Env", "EnvSpec", "Step"]


@dataclass(frozen=True)
class DiscreteActions:
    """One of ``num_actions`` actions; a batch is int64 (L, N), counted from 0."""

    num_actions: int
    start: int = 0
    """What the environment itself calls action 0."""


@dataclass(frozen=True)
class ContinuousActions:
    """A box; a batch is float (L, N, A).

    The environment clips to [low, high], the learner does not ("The 37 implementation details",
    continuous detail 5).
    """

    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class EnvSpec:
    """What a network must know to fit an environment."""

    observation_size: int
    """O, after flattening."""
    actions: DiscreteActions | ContinuousActions
    observation_shape: tuple[int, ...] | None = None
    """As the environment itself gives them; None for a vector (O,)."""


class Step(NamedTuple):
    """What one step of all environments returns, on the trainer's device.

    Autoreset is in the same step: where an episode ended, ``observations`` already belong to the
    next one and ``last_observations`` hold the true last observation of the one that ended. Where
    both are the very same tensor, no episode has ended.
    The tensors are read-only: an environment may return one it keeps, but never writes into one it
    has returned.
    """

    observations: Tensor  # (L, N, O) what to act on next
    rewards: Tensor  # (L, N) what to learn from, normalised if the config says so
    env_rewards: Tensor  # (L, N) in the environment's own units, for episode returns
    terminated: Tensor  # (L, N) bool: the world ended; never true together with truncated
    truncated: Tensor  # (L, N) bool: we stopped watching, the value goes on
    last_observations: Tensor  # (L, N, O) equal to ``observations`` where no episode ended


class Env(ABC):
    """L * N environments stepped together; lane l's numbers depend on its own seed alone."""

    spec: EnvSpec
    num_lanes: int  # L
    num_envs: int  # N
    device: torch.device

    @abstractmethod
    def reset(self) -> Tensor:
        """Begin anew, from the seeds alone, and return the first observations (L, N, O)."""

    @abstractmethod
    def step(self, actions: Tensor) -> Step:
        """Advance by one step; actions are int64 (L, N) or float (L, N, A)."""

    @abstractmethod
    def reset_lane(self, lane: int, seed: int) -> Tensor:
        """Begin one lane anew as if it had been built with ``seed``; others are not touched.

        Returns:
            The observations of all lanes to act on next, (L, N, O).
        """

    def close(self) -> None:  # noqa: B027 (a default, not an omission)
        """Free what the environments hold outside this process's tensors (windows, workers)."""

    def freeze(self) -> None:  # noqa: B027 (the same)
        """Stop statistics from advancing, as an evaluation needs; nothing where there are none."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the statistics that a saved policy needs; empty where there are none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over statistics that ``state_dict`` returned."""
        if state:
            raise ValueError(f"this environment keeps no statistics, but was given {sorted(state)}")
