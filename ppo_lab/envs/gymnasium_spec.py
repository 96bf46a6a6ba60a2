"""Specs of Gymnasium environments, and errors for those that cannot be built or used.

Gymnasium is imported only when needed: a run on native environments never loads it.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from ppo_lab.envs.base import ContinuousActions, DiscreteActions, EnvSpec
from ppo_lab.utils.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import gymnasium

__all__ = [
    *("check_gymnasium", "imports_module", "known_spec", "make_env", "remember_spec"),
    "spec_of_env",
]

log = logging.getLogger(__name__)

_EXTRAS = ("box2d", "mujoco")  # our optional dependencies, named like Gymnasium's folders
_SPECS: dict[str, tuple[EnvSpec, Mapping[str, Any]]] = {}
"""Of the environments that were built or checked, with their kwargs, which keep their ids."""


def imports_module(env_id: str) -> str | None:
    """Return the module whose code runs when ``env_id`` is built, None for an id without one.

    Example:
        >>> imports_module("robots.envs:Walk-v0"), imports_module("CartPole-v1")
        ('robots.envs', None)
    """
    module, colon, _ = env_id.partition(":")
    return module if colon else None


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
    return EnvSpec(observation_size, ContinuousActions(low=low, high=high), shape)


def remember_spec(env_id: str, kwargs: Mapping[str, Any], spec: EnvSpec) -> None:
    """Keep ``spec`` for this process, so that no check builds the environment again."""
    _SPECS[_key(env_id, kwargs)] = spec, kwargs


def known_spec(env_id: str, kwargs: Mapping[str, Any]) -> EnvSpec | None:
    """Return the spec of an environment that was built before; None if there is none."""
    return _SPECS.get(_key(env_id, kwargs), (None, kwargs))[0]


def _key(env_id: str, kwargs: Mapping[str, Any]) -> str:
    return json.dumps(
        [env_id, dict(kwargs)], sort_keys=True, default=lambda value: {"id": id(value)}
    )


def check_gymnasium(
    env_id: str, kwargs: Mapping[str, Any], *, native_ids: Iterable[str]
) -> EnvSpec:
    """Return the spec of a Gymnasium environment, which is built once per process and closed.

    Raises:
        ConfigError: The environment is unknown, cannot be built, or has unsupported spaces.
    """
    if (spec := known_spec(env_id, kwargs)) is None:
        remember_spec(env_id, kwargs, spec := _check_gymnasium(env_id, kwargs, native_ids))
    return spec


def make_env(
    env_id: str, kwargs: Mapping[str, Any], max_episode_steps: int | None = None
) -> gymnasium.Env[Any, Any]:
    """Return a new environment, without Gymnasium's checker: ``returned`` checks more of it."""
    import gymnasium

    options = {"disable_env_checker": True, "max_episode_steps": max_episode_steps, **kwargs}
    env = gymnasium.make(env_id, **options)
    if "mujoco" in sys.modules:
        _log_first_mujoco_warning()
    return env


@functools.cache
def _log_first_mujoco_warning() -> None:
    """Log MuJoCo's first warning; it would write each to the terminal and to MUJOCO_LOG.TXT."""
    import mujoco

    def warn(text: str | bytes) -> None:
        if not logged:
            logged.append(text)
            words = text.decode() if isinstance(text, bytes) else text
            log.warning("MuJoCo: %s (the first warning; others are not shown)", words)

    logged: list[str | bytes] = []
    mujoco.set_mju_user_warning(warn)


def _check_gymnasium(env_id: str, kwargs: Mapping[str, Any], native_ids: Iterable[str]) -> EnvSpec:
    import gymnasium
    from gymnasium import error as errors

    if "max_episode_steps" in kwargs:
        value = kwargs["max_episode_steps"]
        raise ConfigError("env.kwargs.max_episode_steps", value, "set env.max_episode_steps")
    _import_module_of(env_id)
    try:
        env = make_env(env_id, kwargs)
    except (errors.UnregisteredEnv, errors.DeprecatedEnv) as error:
        hint = did_you_mean(env_id.rpartition(":")[2], {*gymnasium.registry, *native_ids})
        hint = hint or "; see gymnasium.pprint_registry()."
        allowed = f"no environment of this name{hint} One from another package: module:Name-v0"
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
    if (module := imports_module(env_id)) is None:
        return
    if env_id.count(":") > 1 or not module:
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
