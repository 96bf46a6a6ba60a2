"""Any Gymnasium environment, stepped on the host, its tensors moved to the trainer's device.

Gymnasium is imported when it is needed and not before, so that a run on native environments never
loads it.

Shapes: L = lanes, N = environments per lane, n = L * N (lane-major), O = observation size, A =
action size.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.envs.base import ContinuousActions, DiscreteActions, Env, EnvSpec, Step
from ppo_lab.utils.errors import ConfigError, closest_match
from ppo_lab.utils.rng import Stream, bits, lane_keys

if TYPE_CHECKING:
    import gymnasium

__all__ = [
    "GymnasiumEnv",
    "StandInEnv",
    "UnsupportedSpaceError",
    "check_gymnasium",
    "env_seeds",
    "spec_of_spaces",
]


class UnsupportedSpaceError(ValueError):
    """An environment whose observations or actions no network of ours fits."""


def spec_of_spaces(observations: gymnasium.Space[Any], actions: gymnasium.Space[Any]) -> EnvSpec:
    """Return the spec of a pair of spaces, or raise ``UnsupportedSpaceError``."""
    from gymnasium.spaces import Box, Discrete

    if not (isinstance(observations, Box) and np.issubdtype(observations.dtype, np.floating)):
        raise UnsupportedSpaceError(
            f"its observations are {observations}; supported is a Box of floats, "
            "which is flattened to a vector"
        )
    observation_size = int(np.prod(observations.shape))
    shape = None if len(observations.shape) == 1 else observations.shape
    if isinstance(actions, Discrete):
        discrete = DiscreteActions(int(actions.n), start=int(actions.start))
        return EnvSpec(observation_size, discrete, shape)
    if not (
        isinstance(actions, Box)
        and np.issubdtype(actions.dtype, np.floating)
        and len(actions.shape) == 1
    ):
        raise UnsupportedSpaceError(
            f"its actions are {actions}; supported are Discrete and a 1-D Box of floats"
        )
    low, high = (tuple(float(x) for x in bound) for bound in (actions.low, actions.high))
    return EnvSpec(observation_size, ContinuousActions(low=low, high=high), shape)


def env_seeds(seeds: Tensor, num_envs: int) -> list[int]:
    """Return n seeds in [0, 2^31), each a function of its lane's seed (L,) and its index alone."""
    numbers = bits(lane_keys(seeds.cpu(), Stream.ENV), num_envs) & 0x7FFF_FFFF
    return [int(number) for number in numbers.flatten().tolist()]


class GymnasiumEnv(Env):
    """L * N environments in one process, with autoreset in the same step.

    The loop over environments is what gymnasium's ``SyncVectorEnv`` does in its mode SAME_STEP,
    less the merging of info dictionaries that nobody reads: of HalfCheetah's 405 us a step (8
    environments, 2 shared cores) that was 60.

    One transfer a step carries observations and rewards, packed into one row per environment. The
    flags and the last observations follow only in a step that ended an episode: the host knows.
    """

    def __init__(
        self,
        env_id: str,
        *,
        seeds: Tensor,
        num_envs: int,
        placement: Placement,
        dtype: torch.dtype = torch.float32,
        max_episode_steps: int | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Build n environments; ``seeds`` (L,) lie on the host; call ``reset`` next."""
        import gymnasium

        self.num_lanes, self.num_envs, self.device = seeds.shape[0], num_envs, placement.device
        self._dtype, self._placement = dtype, placement
        self._envs: list[gymnasium.Env[Any, Any]] = [
            gymnasium.make(env_id, max_episode_steps=max_episode_steps, **(kwargs or {}))
            for _ in range(self.num_lanes * num_envs)
        ]
        observations, actions = self._envs[0].observation_space, self._envs[0].action_space
        self.spec = spec_of_spaces(observations, actions)
        if isinstance(self.spec.actions, ContinuousActions):
            self._low = np.array(self.spec.actions.low, actions.dtype)
            self._high = np.array(self.spec.actions.high, actions.dtype)
        self._seeds = env_seeds(seeds, num_envs)
        self._allocate_rows()
        self._view_rows(observations.shape or ())

    def _allocate_rows(self) -> None:
        """Allocate what is sent to the device, pinned where there is a bus to cross."""
        size = self.spec.observation_size
        shape = (self.num_lanes, self.num_envs)
        host_dtype = torch.float64 if self._dtype == torch.float64 else torch.float32
        empty = self._placement.empty_host
        self._packed = empty(*shape, size + 1, dtype=host_dtype, pin=True)
        self._final = empty(*shape, size, dtype=host_dtype, pin=True)
        self._flags = empty(2, *shape, dtype=torch.bool, pin=True)
        self._no_flags = torch.zeros(shape, dtype=torch.bool, device=self.device)

    def _view_rows(self, observation_shape: tuple[int, ...]) -> None:
        """Take numpy's views of the same memory, in the shape an environment returns."""
        num_rows, size = len(self._envs), self.spec.observation_size
        packed = self._packed.numpy().reshape(num_rows, size + 1)
        self._observation_rows = packed[:, :size].reshape(num_rows, *observation_shape)
        self._reward_rows = packed[:, size]
        self._final_rows = self._final.numpy().reshape(num_rows, *observation_shape)
        self._flag_rows = self._flags.numpy().reshape(2, num_rows)
        assert np.shares_memory(self._observation_rows, packed)

    def reset(self) -> Tensor:
        """Begin anew, from the seeds alone, and return the first observations (L, N, O)."""
        for row in range(len(self._envs)):
            self._observation_rows[row] = self._envs[row].reset(seed=self._seeds[row])[0]
        return self._to_device(self._packed)[..., :-1]

    def step(self, actions: Tensor) -> Step:
        """Advance by one step; actions are int64 (L, N) or float (L, N, A)."""
        ended = self._step_rows(self._placement.move(actions, Place.host))
        packed = self._to_device(self._packed)
        first, env_rewards = packed[..., :-1], packed[..., -1]  # (L, N, O), (L, N)
        if not ended:
            return Step(first, env_rewards, env_rewards, self._no_flags, self._no_flags, first)
        flags = self._placement.move(self._flags, Place.device)
        goes_on = np.ones(len(self._envs), dtype=np.bool_)
        goes_on[ended] = False
        self._final_rows[goes_on] = self._observation_rows[goes_on]
        last = self._to_device(self._final)
        return Step(first, env_rewards, env_rewards, flags[0], flags[1], last)

    def reset_lane(self, lane: int, seed: int) -> Tensor:
        """Begin one lane anew as if it had been built with ``seed``; return all observations."""
        begin = lane * self.num_envs
        for row, env_seed in enumerate(env_seeds(torch.tensor([seed]), self.num_envs), begin):
            self._seeds[row] = env_seed
            self._observation_rows[row] = self._envs[row].reset(seed=env_seed)[0]
        return self._to_device(self._packed)[..., :-1]

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _step_rows(self, actions: Tensor) -> list[int]:
        """Step every environment into its row and return the rows whose episode ended."""
        ended: list[int] = []
        for row, action in enumerate(self._as_gymnasium_takes(actions)):
            observation, reward, terminated, truncated, _ = self._envs[row].step(action)
            if terminated or truncated:
                if not ended:
                    self._flag_rows[:] = False
                ended.append(row)
                self._flag_rows[:, row] = terminated, truncated and not terminated
                self._final_rows[row] = observation  # now: reset may reuse the array
                observation, _ = self._envs[row].reset()
            self._observation_rows[row] = observation
            self._reward_rows[row] = reward
        return ended

    def _as_gymnasium_takes(self, actions: Tensor) -> np.ndarray[Any, Any]:
        """Return ``actions``, on the host, as (n,) from its own start, or (n, A) clipped."""
        on_host = actions.flatten(0, 1).numpy()
        if isinstance(self.spec.actions, DiscreteActions):
            start = self.spec.actions.start
            return on_host + start if start else on_host
        return np.minimum(np.maximum(on_host, self._low), self._high)  # np.clip, at half its price

    def _to_device(self, rows: Tensor) -> Tensor:
        """Return a copy of ``rows`` on the device, in the dtype asked for."""
        moved = self._placement.move(rows, Place.device)
        return moved if moved.dtype == self._dtype else moved.to(self._dtype)


_EXTRAS = ("box2d", "mujoco")
"""Our optional dependencies, each named like the folder of Gymnasium that needs it."""


def check_gymnasium(
    env_id: str, kwargs: Mapping[str, Any], *, native_ids: Iterable[str]
) -> EnvSpec:
    """Return the spec of ``env_id``, made once and closed, or raise ``ConfigError``."""
    import gymnasium
    from gymnasium import error as errors

    if "max_episode_steps" in kwargs:
        value = kwargs["max_episode_steps"]
        raise ConfigError("env.kwargs.max_episode_steps", value, "set env.max_episode_steps")
    _import_module_of(env_id)
    try:
        env: gymnasium.Env[Any, Any] = gymnasium.make(env_id, **kwargs)
    except (errors.UnregisteredEnv, errors.DeprecatedEnv) as error:
        raise _unknown(env_id, {*gymnasium.registry, *native_ids}) from error
    except (errors.DependencyNotInstalled, ImportError) as error:
        raise _missing_dependency(env_id, error) from error
    except errors.Error as error:
        raise ConfigError("env.id", env_id, str(error)) from error
    except Exception as error:  # whatever the environment's own constructor raises
        if kwargs and isinstance(error, AssertionError | TypeError | ValueError):
            raise ConfigError("env.kwargs", dict(kwargs), str(error)) from error
        allowed = f"cannot be made: {type(error).__name__}: {error} (HYDRA_FULL_ERROR=1 says where)"
        raise ConfigError("env.id", env_id, allowed) from error
    try:
        spec = spec_of_spaces(env.observation_space, env.action_space)
        env.close()
    except UnsupportedSpaceError as error:
        raise ConfigError("env.id", env_id, str(error)) from error
    except Exception as error:  # whatever the environment's own close raises
        raise ConfigError("env.id", env_id, f"cannot be closed: {error}") from error
    return spec


def _import_module_of(env_id: str) -> None:
    """Import ``module`` of an id ``module:Name-v0``, so that it registers its environments."""
    module, colon, name = env_id.partition(":")
    if not colon:
        return
    if ":" in name or not module:
        raise ConfigError("env.id", env_id, "a module and a name have the form module:Name-v0")
    try:
        importlib.import_module(module)
    except ImportError as error:
        allowed = (
            f"cannot import {module} ({error}); "
            "install it, or put its folder on the path: PYTHONPATH=FOLDER"
        )
        raise ConfigError("env.id", env_id, allowed) from error


def _unknown(env_id: str, valid: Iterable[str]) -> ConfigError:
    """Return the error for an id that nobody registered."""
    guess = closest_match(env_id.rpartition(":")[2], valid)
    hint = f"did you mean {guess}?" if guess else "see gymnasium.pprint_registry()"
    allowed = f"no environment of this name; {hint} One from another package: module:Name-v0"
    return ConfigError("env.id", env_id, allowed)


def _missing_dependency(env_id: str, error: Exception) -> ConfigError:
    """Return the error for an environment whose own package is not installed."""
    import gymnasium
    from gymnasium.error import DependencyNotInstalled

    folder = str(gymnasium.spec(env_id).entry_point)
    is_missing = isinstance(error, DependencyNotInstalled | ModuleNotFoundError)
    for extra in _EXTRAS:
        if is_missing and f".{extra}" in folder:  # else a message such as "moved elsewhere"
            return ConfigError("env.id", env_id, f"pip install 'ppo_lab[{extra}]' ({error})")
    return ConfigError("env.id", env_id, str(error))


class StandInEnv(GymnasiumEnv):
    """Sends the rows that ``GymnasiumEnv`` would send, without values; no episode ever ends."""

    def __init__(
        self,
        spec: EnvSpec,
        *,
        num_lanes: int,
        num_envs: int,
        placement: Placement,
        dtype: torch.dtype,
    ) -> None:
        """Look like n environments of ``spec``."""
        self.spec, self.num_lanes, self.num_envs = spec, num_lanes, num_envs
        self.device, self._placement, self._dtype = placement.device, placement, dtype
        self._allocate_rows()

    def reset(self) -> Tensor:
        """Return the first observations (L, N, O)."""
        return self._to_device(self._packed)[..., :-1]

    def close(self) -> None:
        """Nothing is open."""

    def _step_rows(self, actions: Tensor) -> list[int]:  # noqa: ARG002 - nobody acts
        return []
