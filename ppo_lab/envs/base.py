"""Interface of environments: L * N are stepped together, with tensors in and out.

Shapes: L = lanes, N = environments per lane, O = observation size, A = action size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["ContinuousActions", "DiscreteActions", "Env", "EnvSpec", "Step"]


@dataclass(frozen=True)
class DiscreteActions:
    """One of ``num_actions`` actions; a batch is int64 (L, N), counted from 0."""

    num_actions: int
    start: int = 0  # the environment's own number of action 0


@dataclass(frozen=True)
class ContinuousActions:
    """A box; a batch is float (L, N, A).

    The environment clips, not the learner ("The 37 implementation details", continuous detail 5).
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str = "float32"  # of the environment's own actions


@dataclass(frozen=True)
class EnvSpec:
    """Sizes that a network needs to match an environment."""

    observation_size: int  # O, after flattening
    actions: DiscreteActions | ContinuousActions
    observation_shape: tuple[int, ...] | None = None  # the environment's own; None for (O,)
    num_tokens: int | None = None  # observations are int64 tokens below this; None for numbers
    max_episode_steps: int | None = None  # the most steps of an episode, if it is known

    @property
    def shape(self) -> tuple[int, ...]:
        """The environment's own shape of an observation; () for a single number."""
        shape = self.observation_shape
        return (self.observation_size,) if shape is None else shape


class Step(NamedTuple):
    """Result of one step of all environments, on the training device; its tensors are read-only.

    Autoreset happens in the same step: where an episode ended, ``observations`` are the first of
    the next episode and ``last_observations`` the true last ones of the ended episode. If both are
    the same tensor object, no episode has ended.
    """

    observations: Tensor  # (L, N, O) for the next action
    rewards: Tensor  # (L, N) for learning, normalised if the config says so
    env_rewards: Tensor  # (L, N) in the environment's own units, for episode returns
    terminated: Tensor  # (L, N) bool: a terminal state; never true together with truncated
    truncated: Tensor  # (L, N) bool: cut off, so the value is bootstrapped
    last_observations: Tensor  # (L, N, O) equal to ``observations`` where no episode ended


class Env(ABC):
    """L * N environments stepped together; a lane's numbers depend only on its own seed."""

    spec: EnvSpec
    num_lanes: int  # L
    num_envs: int  # N
    device: torch.device

    @abstractmethod
    def reset(self) -> Tensor:
        """Start all episodes from the seeds; return the first observations (L, N, O)."""

    @abstractmethod
    def step(self, actions: Tensor) -> Step:
        """Advance by one step; actions are int64 (L, N) or float (L, N, A), on ``device``."""

    @abstractmethod
    def reset_lane(self, lane: int, seed: int, *, is_same_run: bool = False) -> Tensor:
        """Restart one lane as if built with ``seed``; return all observations (L, N, O).

        If it goes on with the same run, its running statistics stay.
        """

    def begin_episodes(self, keys: Tensor, group_size: int) -> Tensor:
        """Restart every episode; return the first observations (L, N, O).

        Each ``group_size`` consecutive environments of a lane start from the same state, which
        depends on the lane's random key (L,) and the number of the group only. Running statistics
        stay.
        """
        raise NotImplementedError

    def given_actions(self, actions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the actions to take in place of the sampled ones, and where they are given.

        The tokens of a prompt are given, (L, N) bool; None where all actions are the policy's.
        """
        return actions, None

    def final_rewards(self) -> Tensor | None:
        """Return rewards (L, N) of the episodes that ``begin_episodes`` began, after the last step.

        They are added to those of each episode's last live step. None: all were in the steps.
        """
        return None

    def text_metrics(self) -> dict[str, Tensor]:
        """Return means (L,), on the host, over the texts of the last ``final_rewards``; or {}."""
        return {}

    def samples(self, lane: int, number: int) -> list[str]:  # noqa: ARG002
        """Return the first ``number`` texts of a lane of the last ``final_rewards``."""
        return []

    @property
    def state_mode(self) -> Literal["exact", "boundary"]:
        """Whether ``lane_state`` is complete: ``exact`` is, with ``boundary`` episodes are lost.

        Boundary environments are therefore restarted at fixed iterations, and a run can continue
        from there only.
        """
        return "boundary"

    def lane_state(self, lane: int) -> tuple[dict[str, Tensor], dict[str, Any]]:  # noqa: ARG002
        """Return the state of a lane's environments: copied tensors, and values for JSON."""
        return {}, {}

    def load_lane_state(  # noqa: B027 (a default, not an omission)
        self, lane: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
    ) -> None:
        """Continue a lane where ``lane_state`` returned this, after any number of other steps.

        ``tensors`` are on the host. Raises ``ValueError`` if they do not fit this environment.
        """

    def close(self) -> None:  # noqa: B027 (the same)
        """Release windows and the like; none by default."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the statistics that a saved policy needs; empty by default."""
        return {}
