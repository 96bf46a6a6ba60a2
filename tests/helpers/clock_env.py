"""A Gymnasium environment whose observations and rewards are known in advance."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Clock(gymnasium.Env):
    """Observes (episode, time); rewards 100 episode + 10 time + action, all before the step.

    Episode k terminates after ``lengths[k % len(lengths)]`` steps. One array is reused for all
    observations, as some simulators do.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(self, lengths: tuple[int, ...] = (3, 1, 4), shape: tuple[int, ...] = (2,)) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, shape, np.float64)
        self.action_space = spaces.Discrete(4, start=5)
        self._lengths = lengths
        self._array = np.zeros(shape)
        self._episode, self._time = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._episode = 0 if seed is not None else self._episode + 1
        self._time = 0
        return self._observe(), {"noise": self._episode}

    def step(self, action):
        assert self.action_space.contains(action)
        reward = 100.0 * self._episode + 10.0 * self._time + float(action - 5)
        self._time += 1
        terminated = self._time >= self._lengths[self._episode % len(self._lengths)]
        return self._observe(), reward, terminated, False, {"time": self._time}

    def _observe(self):
        self._array[...] = np.array([self._episode, self._time]).reshape(self._array.shape)
        return self._array


class Strange(gymnasium.Env):
    """An environment with given spaces and no dynamics."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space


gymnasium.register("Clock-v0", Clock, disable_env_checker=True)
gymnasium.register("Strange-v0", Strange)
