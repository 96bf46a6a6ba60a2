"""Specs of Gymnasium environments, and errors for those that cannot be built or used.

Gymnasium is imported only when needed: a run on native environments never loads it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from ppo_lab.envs.base import ContinuousActions, DiscreteActions, EnvSpec
from ppo_lab.utils.errors import ConfigError, closest_match

if TYPE_CHECKING:
    import gymnasium

__all__ = ["check_gymnasium", "spec_of_env"]

_EXTRAS = ("box2d", "mujoco")  # our optional dependencies, named like Gymnasium's folders
_SPECS: dict[str, EnvSpec] = {}  # of the environments that this process has checked


def spec_of_env(env_id: str, env: gymnasium.Env[Any, Any]) -> EnvSpec:
    """Return the spec of ``env``; raise ``ConfigError`` for spaces that no network supports."""
    from gymnasium.spaces import Box, Discrete

    def is_float_box(space: gymnasium.Space[Any]) -> TypeGuard[Box]:
        return isinstance(space, Box) and np.issubdtype(space.dtype, np.floating)

    observations, actions = env.observation_space, env.action_space
    if not is_float_box(observations):
        supported = "a Box of floats, which is flattened to a vector"
        allowed = f"its observations are {observations}; supported is {supported}"
        raise ConfigError("env.id", env_id, allowed)
    observation_size = int(np.prod(observations.shape))
    shape = None if len(observations.shape) == 1 else observations.shape
    if isinstance(actions, Discrete):
        discrete = DiscreteActions(int(actions.n), start=int(actions.start))
        return EnvSpec(observation_size, discrete, shape)
    if not (is_float_box(actions) and len(actions.shape) == 1):
        allowed = f"its actions are {actions}; supported are Discrete and a 1-D Box of floats"
        raise ConfigError("env.id", env_id, allowed)
    low, high = (tuple(float(x) for x in bound) for bound in (actions.low, actions.high))
    return EnvSpec(observation_size, ContinuousActions(low, high, actions.dtype.name), shape)


def check_gymnasium(
    env_id: str, kwargs: Mapping[str, Any], *, native_ids: Iterable[str]
) -> EnvSpec:
    """Return the spec of a Gymnasium environment, which is built once per process and closed.

    Raises:
        ConfigError: The environment is unknown, cannot be built, or has unsupported spaces.
    """
    try:
        key = json.dumps([env_id, dict(kwargs)], sort_keys=True)
    except TypeError:  # kwargs from Python, with objects that have no JSON form
        return _check_gymnasium(env_id, kwargs, native_ids)
    if key not in _SPECS:
        _SPECS[key] = _check_gymnasium(env_id, kwargs, native_ids)
    return _SPECS[key]


def _check_gymnasium(env_id: str, kwargs: Mapping[str, Any], native_ids: Iterable[str]) -> EnvSpec:
    import gymnasium
    from gymnasium import error as errors

    if "max_episode_steps" in kwargs:
        value = kwargs["max_episode_steps"]
        raise ConfigError("env.kwargs.max_episode_steps", value, "set env.max_episode_steps")
    _import_module_of(env_id)
    try:
        env: gymnasium.Env[Any, Any] = gymnasium.make(env_id, **kwargs)
    except (errors.UnregisteredEnv, errors.DeprecatedEnv) as error:
        guess = closest_match(env_id.rpartition(":")[2], {*gymnasium.registry, *native_ids})
        hint = f"did you mean {guess}?" if guess else "see gymnasium.pprint_registry()"
        allowed = f"no environment of this name; {hint} One from another package: module:Name-v0"
        raise ConfigError("env.id", env_id, allowed) from error
    except (errors.DependencyNotInstalled, ImportError) as error:
        raise _missing_dependency(env_id, error) from error
    except errors.Error as error:
        raise ConfigError("env.id", env_id, str(error)) from error
    except Exception as error:  # whatever the environment's own constructor raises
        if kwargs and isinstance(error, AssertionError | TypeError | ValueError):
            raise ConfigError("env.kwargs", dict(kwargs), str(error)) from error
        allowed = f"cannot be built: {type(error).__name__}: {error} (see HYDRA_FULL_ERROR=1)"
        raise ConfigError("env.id", env_id, allowed) from error
    spec = spec_of_env(env_id, env)
    try:
        env.close()
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
        remedy = "install it, or add its folder to the path: PYTHONPATH=FOLDER"
        raise ConfigError(
            "env.id", env_id, f"cannot import {module} ({error}); {remedy}"
        ) from error


def _missing_dependency(env_id: str, error: Exception) -> ConfigError:
    """Return the error for an environment whose own package is not installed."""
    import gymnasium
    from gymnasium.error import DependencyNotInstalled

    folder = str(gymnasium.spec(env_id).entry_point)
    is_missing = isinstance(error, DependencyNotInstalled | ModuleNotFoundError)
    for extra in _EXTRAS:
        if is_missing and f".{extra}" in folder:  # not a message such as "moved elsewhere"
            return ConfigError("env.id", env_id, f"pip install 'ppo_lab[{extra}]' ({error})")
    return ConfigError("env.id", env_id, str(error))
