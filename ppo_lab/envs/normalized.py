"""An environment whose observations and rewards are normalised by their running statistics.

Statistics advance once per environment step, on the trainer's device, lane by lane. What is
returned was normalised with the statistics of its own step and is stored as it is: the update sees
the numbers the policy acted on.

Shapes: L = lanes, N = environments per lane, O = observation size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ppo_lab.envs.base import Env, Step
from ppo_lab.envs.running_stats import Normalizer, RunningMoments

__all__ = ["Advance", "NormalizedEnv"]

Advance = Callable[[Step], tuple[Tensor, Tensor]]
"""Counts a step as it comes; returns its observations (L, N, O) and rewards (L, N) normalised."""


class NormalizedEnv(Env):
    """Another environment, seen through normalised observations, normalised rewards, or both."""

    def __init__(
        self, env: Env, *, observations: bool, rewards: bool, gamma: Tensor | None = None
    ) -> None:
        """Wrap ``env``; ``gamma`` (L,) lies on its device and is needed for rewards alone."""
        self._env = env
        self.spec, self.device = env.spec, env.device
        self.num_lanes, self.num_envs = env.num_lanes, env.num_envs
        self._is_frozen = False
        self.normalizer = Normalizer.begin(
            env.num_lanes,
            env.num_envs,
            env.spec.observation_size if observations else 0,
            gamma=gamma if rewards else None,
            device=env.device,
        )
        """The statistics."""
        self.compiled_advance: Advance | None = None
        """Takes the place of ``advance`` where it is compiled."""
        assert gamma is not None or not rewards

    def reset(self) -> Tensor:
        """Begin anew and return the first observations (L, N, O); they count, statistics stay."""
        observations = self._env.reset()
        if self.normalizer.returns is not None:
            self.normalizer.returns.reset()
        if not self._is_frozen:
            self.normalizer.count_observations(observations)
        return self.normalizer.normalize(observations)

    def step(self, actions: Tensor) -> Step:
        """Advance by one step; ``env_rewards`` stay in the environment's own units."""
        step = self._env.step(actions)
        if self._is_frozen:
            observations = self.normalizer.normalize(step.observations)
            rewards = self.normalizer.scale(step.rewards)
        else:
            observations, rewards = (self.compiled_advance or self.advance)(step)
        if step.last_observations is step.observations:
            last_observations = observations
        else:
            last_observations = self.normalizer.normalize(step.last_observations)
        return step._replace(
            observations=observations, rewards=rewards, last_observations=last_observations
        )

    def advance(self, step: Step) -> tuple[Tensor, Tensor]:
        """See ``Advance``."""
        has_ended = step.last_observations is not step.observations  # or nothing has
        ended = step.terminated | step.truncated if has_ended else None
        return self.normalizer.advance(step.observations, step.rewards, ended)

    def reset_lane(self, lane: int, seed: int) -> Tensor:
        """Begin one lane anew, its statistics too; return all observations (L, N, O)."""
        observations = self._env.reset_lane(lane, seed)
        self.normalizer.reset_lane(lane)
        moments = self.normalizer.observations
        if moments is not None and not self._is_frozen:
            moments.update_lane(lane, observations[lane])
        return self.normalizer.normalize(observations)

    def close(self) -> None:
        """Close the wrapped environment."""
        self._env.close()

    def freeze(self) -> None:
        """Stop the statistics from advancing, as an evaluation needs."""
        self._is_frozen = True

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies: observation_mean, _var (L, O), return_mean, _var and both _count (L,)."""
        return {
            f"{name}_{key}": value
            for name, moments in self._all_moments().items()
            for key, value in moments.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over statistics that ``state_dict`` returned."""
        for name, moments in self._all_moments().items():
            moments.load_state_dict({key: state[f"{name}_{key}"] for key in moments.state_dict()})

    def _all_moments(self) -> dict[str, RunningMoments]:
        """Return the statistics that exist, by the name they have in ``state_dict``."""
        moments = {}
        if self.normalizer.observations is not None:
            moments["observation"] = self.normalizer.observations
        if self.normalizer.returns is not None:
            moments["return"] = self.normalizer.returns.moments
        return moments
