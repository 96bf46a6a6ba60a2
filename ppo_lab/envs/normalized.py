"""An environment whose observations and rewards are normalised by their running statistics.

The statistics are updated once per environment step, separately for each lane. A step is
normalised by the statistics that include it and stored that way: the update sees the numbers that
the policy acted on.

Shapes: L = lanes, N = environments per lane, O = observation size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from ppo_lab.devices.placement import copy_exactly
from ppo_lab.envs.base import Env, Step
from ppo_lab.envs.running_stats import Normalizer

__all__ = ["Advance", "NormalizedEnv"]

Advance = Callable[[Step], tuple[Tensor, Tensor]]
"""Updates the statistics; returns normalised observations (L, N, O) and rewards (L, N)."""


class NormalizedEnv(Env):
    """Wraps an environment and normalises its observations, its rewards, or both."""

    def __init__(
        self, env: Env, *, observations: bool, rewards: bool, gamma: Tensor | None = None
    ) -> None:
        """Wrap ``env``; ``gamma`` (L,), on its device, is needed to normalise rewards."""
        assert gamma is not None or not rewards
        self._env = env
        self.spec, self.device = env.spec, env.device
        self.num_lanes, self.num_envs = env.num_lanes, env.num_envs
        self.normalizer = Normalizer.begin(
            env.num_lanes,
            env.num_envs,
            env.spec.observation_size if observations else 0,
            gamma=gamma if rewards else None,
            device=env.device,
        )
        self.compiled_advance: Advance | None = None  # replaces ``advance`` when it is compiled

    def reset(self) -> Tensor:
        """Start new episodes; return and count the first observations (L, N, O)."""
        return self._begin(self._env.reset())

    def begin_episodes(self, keys: Tensor, group_size: int) -> Tensor:
        """See ``Env.begin_episodes``; the first observations are counted."""
        return self._begin(self._env.begin_episodes(keys, group_size))

    def _begin(self, observations: Tensor) -> Tensor:
        self.normalizer.reset_returns()
        if self.normalizer.observations is not None:
            self.normalizer.observations.update(observations)
        return self.normalizer.normalize(observations)

    def step(self, actions: Tensor) -> Step:
        """Advance by one step; ``env_rewards`` stay in the environment's own units."""
        step = self._env.step(actions)
        observations, rewards = (self.compiled_advance or self.advance)(step)
        last = observations
        if step.last_observations is not step.observations:
            last = self.normalizer.normalize(step.last_observations)
        return step._replace(observations=observations, rewards=rewards, last_observations=last)

    def advance(self, step: Step) -> tuple[Tensor, Tensor]:
        """See ``Advance``."""
        may_have_ended = step.last_observations is not step.observations
        ended = step.terminated | step.truncated if may_have_ended else None
        return self.normalizer.advance(step.observations, step.rewards, ended)

    def reset_lane(self, lane: int, seed: int, *, is_same_run: bool = False) -> Tensor:
        """See ``Env.reset_lane``; the first observations are counted."""
        (self.normalizer.reset_returns if is_same_run else self.normalizer.reset_lane)(lane)
        observations = self._env.reset_lane(lane, seed, is_same_run=is_same_run)
        moments, one = self.normalizer.observations, slice(lane, lane + 1)
        if moments is not None:
            moments[one].update(observations[one])
        return self.normalizer.normalize(observations)

    @property
    def state_mode(self) -> Literal["exact", "boundary"]:
        """That of the wrapped environment."""
        return self._env.state_mode

    def lane_state(self, lane: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Add a lane's statistics and discounted returns to the wrapped environment's state."""
        tensors, numbers = self._env.lane_state(lane)
        own = self.normalizer.lane_tensors(lane).items()
        return tensors | {f"normalizer.{name}": tensor.clone() for name, tensor in own}, numbers

    def load_lane_state(
        self, lane: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
    ) -> None:
        """See ``Env.load_lane_state``."""
        for name, tensor in self.normalizer.lane_tensors(lane).items():
            copy_exactly(tensor, tensors[f"normalizer.{name}"], name)
        self._env.load_lane_state(lane, tensors, numbers)

    def close(self) -> None:
        """Close the wrapped environment."""
        self._env.close()

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies: observation_mean, _var (L, O), return_mean, _var and both _count (L,)."""
        state: dict[str, Tensor] = {}
        if (moments := self.normalizer.observations) is not None:
            state |= moments.state_dict("observation_")
        if (moments := self.normalizer.returns) is not None:
            state |= moments.state_dict("return_")
        return state
