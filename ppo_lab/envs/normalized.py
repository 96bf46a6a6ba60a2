"""An environment whose observations and rewards are normalised by their running statistics.

Statistics advance once per environment step, on the trainer's device, lane by lane. What is
returned was normalised with the statistics of its own step and is stored as it is: the update sees
the numbers the policy acted on.

Shapes: L = lanes, N = environments per lane, O = observation size.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ppo_lab.envs.base import Env, Step
from ppo_lab.normalization import DiscountedReturns, RunningMoments, normalize

__all__ = ["NormalizedEnv"]


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
        self._moments: RunningMoments | None = None
        self._returns: DiscountedReturns | None = None
        if observations:
            shape = (env.spec.observation_size,)
            self._moments = RunningMoments(env.num_lanes, shape, device=env.device)
        if rewards:
            assert gamma is not None
            self._returns = DiscountedReturns(gamma, env.num_envs, device=env.device)

    def reset(self) -> Tensor:
        """Begin anew and return the first observations (L, N, O); they count, statistics stay."""
        if self._returns is not None:
            self._returns.reset()
        return self._count_and_normalize(self._env.reset())

    def step(self, actions: Tensor) -> Step:
        """Advance by one step; ``env_rewards`` stay in the environment's own units."""
        step = self._env.step(actions)
        observations = self._count_and_normalize(step.observations)
        if step.last_observations is step.observations:
            last_observations = observations
        else:
            last_observations = self._normalize(step.last_observations)
        return step._replace(
            observations=observations,
            rewards=self._scale(step),
            last_observations=last_observations,
        )

    def restart_lane(self, lane: int, seed: int) -> Tensor:
        """Begin one lane anew, its statistics too; return all observations (L, N, O)."""
        observations = self._env.restart_lane(lane, seed)
        if self._returns is not None:
            self._returns.restart_lane(lane)
        if self._moments is None:
            return observations
        self._moments.restart_lane(lane)
        if not self._is_frozen:
            self._moments.update_lane(lane, observations[lane])
        return self._normalize(observations)

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
        if self._moments is not None:
            moments["observation"] = self._moments
        if self._returns is not None:
            moments["return"] = self._returns.moments
        return moments

    def _count_and_normalize(self, observations: Tensor) -> Tensor:
        """Return ``observations`` (L, N, O) normalised with statistics that include them."""
        if self._moments is not None and not self._is_frozen:
            self._moments.update(observations)
        return self._normalize(observations)

    def _normalize(self, observations: Tensor) -> Tensor:
        """Return ``observations`` (L, N, O) normalised with the statistics as they are."""
        if self._moments is None:
            return observations
        return normalize(observations, var=self._moments.var, mean=self._moments.mean)

    def _scale(self, step: Step) -> Tensor:
        """Return the rewards (L, N) to learn from."""
        if self._returns is None:
            return step.rewards
        if not self._is_frozen:
            self._returns.update(step.rewards)
        rewards = self._returns.scale(step.rewards)
        self._returns.end_episodes(step.terminated | step.truncated)
        return rewards
