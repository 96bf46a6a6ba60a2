"""Specs of Gymnasium environments, and errors for those that cannot be built or used.

Gymnasium is imported only when needed: a run on native environments never loads it.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ppo_lab.envs.base import ContinuousActions, DiscreteActions, EnvSpec
from ppo_lab.envs.guard import EnvGuard, describe_error
from ppo_lab.envs.time_limit import OverdueCall
from ppo_lab.utils.errors import ConfigError, EnvironmentFault, did_you_mean

if TYPE_CHECKING:
    import gymnasium

__all__ = [
    *("check_gymnasium", "imports_module", "known_limit", "known_spec", "make_env"),
    *("remember_spec", "spec_of_env"),
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

    observations, actions = env.observation_space, env.action_space
    if (full_shape := _vector_shape(observations)) is None:
        supported = "a Box, or MultiBinary, which is flattened to a vector, and no image"
        remedy = "gymnasium.wrappers.FlattenObservation makes a vector of other spaces"
        allowed = f"its observations are {observations}; supported is {supported}. {remedy}"
        raise ConfigError("env.id", env_id, allowed)
    observation_size = math.prod(full_shape)
    shape = None if len(full_shape) == 1 else full_shape
    if isinstance(actions, Discrete):
        discrete = DiscreteActions(int(actions.n), start=int(actions.start))
        return EnvSpec(observation_size, discrete, shape)
    is_vector = len(actions.shape or ()) == 1 and 0 not in (actions.shape or ())
    if not (isinstance(actions, Box) and np.issubdtype(actions.dtype, np.floating) and is_vector):
        allowed = f"its actions are {actions}; supported are Discrete and a 1-D Box of floats"
        raise ConfigError("env.id", env_id, allowed)
    low, high = (tuple(float(x) for x in bound) for bound in (actions.low, actions.high))
    return EnvSpec(observation_size, ContinuousActions(low, high, actions.dtype.name), shape)


def _vector_shape(space: gymnasium.Space[Any]) -> tuple[int, ...] | None:
    """Return the shape of numbers for a network of dense layers; None if ``space`` has others."""
    from gymnasium.spaces import Box, MultiBinary

    if not isinstance(space, Box | MultiBinary) or 0 in space.shape:
        return None
    is_image = space.dtype == np.uint8 and len(space.shape) == 3
    return None if is_image else space.shape


def remember_spec(env_id: str, kwargs: Mapping[str, Any], spec: EnvSpec) -> None:
    """Keep ``spec`` for this process, so that no check builds the environment again."""
    _SPECS[_key(env_id, kwargs)] = spec, kwargs


def known_spec(env_id: str, kwargs: Mapping[str, Any]) -> EnvSpec | None:
    """Return the spec of an environment that was built before; None if there is none."""
    return _SPECS.get(_key(env_id, kwargs), (None, kwargs))[0]


def known_limit(env_id: str) -> int | None:
    """Return the registered most steps of an episode; None if there is none or no such id.

    No module is imported for it but Gymnasium.
    """
    import gymnasium

    spec = gymnasium.registry.get(env_id.rpartition(":")[2])
    return None if spec is None else spec.max_episode_steps


def _key(env_id: str, kwargs: Mapping[str, Any]) -> str:
    return json.dumps(
        [env_id, dict(kwargs)], sort_keys=True, default=lambda value: {"id": id(value)}
    )


def check_gymnasium(
    env_id: str,
    kwargs: Mapping[str, Any],
    *,
    native_ids: Iterable[str],
    timeout_s: float | None = None,
) -> EnvSpec:
    """Return the spec of a Gymnasium environment, which is built once per process and closed.

    Raises ``ConfigError`` if it is unknown, cannot be built (within ``timeout_s``), or has
    unsupported spaces.
    """
    if (spec := known_spec(env_id, kwargs)) is not None:
        return spec
    if "max_episode_steps" in kwargs:
        value = kwargs["max_episode_steps"]
        raise ConfigError("env.kwargs.max_episode_steps", value, "set env.max_episode_steps")
    module = imports_module(env_id)
    if module is not None and (env_id.count(":") > 1 or not module):
        raise ConfigError("env.id", env_id, "a module and a name have the form module:Name-v0")
    import gymnasium  # noqa: F401 (now, as the time limit is the environment's)

    guard = EnvGuard(1, 1, timeout_s)
    try:
        with guard("building"):
            if module is not None:
                importlib.import_module(module)  # it registers its environments
            env = make_env(env_id, kwargs)
        guard.close_env(env)
    except EnvironmentFault as fault:
        error = fault.__cause__ or fault
        raise _refusal(env_id, kwargs, error, native_ids) from error
    finally:
        guard.close()
    remember_spec(env_id, kwargs, spec := spec_of_env(env_id, env))
    return spec


def _refusal(
    env_id: str, kwargs: Mapping[str, Any], error: BaseException, native_ids: Iterable[str]
) -> ConfigError:
    """Return the error for an environment whose import or constructor raised ``error``."""
    import gymnasium
    from gymnasium import error as errors

    text = " ".join(str(error).split())
    if isinstance(error, errors.UnregisteredEnv | errors.DeprecatedEnv):
        hint = did_you_mean(env_id.rpartition(":")[2], {*gymnasium.registry, *native_ids})
        hint = hint or "; see gymnasium.pprint_registry()."
        text = f"no environment of this name{hint} One from another package: module:Name-v0"
    elif isinstance(error, errors.DependencyNotInstalled | ImportError):
        text = _missing_package(env_id, error)
    elif isinstance(error, errors.Error):
        pass
    elif kwargs and isinstance(error, AssertionError | TypeError | ValueError):
        return ConfigError("env.kwargs", dict(kwargs), text)
    elif isinstance(error, OverdueCall):
        text = "cannot be built within env.timeout_s"
    else:  # whatever the environment's own module or constructor raises
        text = f"cannot be built: {describe_error(error)}"
    return ConfigError("env.id", env_id, text)


def _missing_package(env_id: str, error: Exception) -> str:
    """Return which package must be installed."""
    import gymnasium
    from gymnasium.error import DependencyNotInstalled

    module = imports_module(env_id)
    missing = getattr(error, "name", None)
    if module is not None and missing and f"{module}.".startswith(f"{missing}."):
        remedy = "install it, or add its folder to the path: PYTHONPATH=FOLDER"
        return f"cannot import {module} ({error}); {remedy}"
    registered = gymnasium.registry.get(env_id.rpartition(":")[2])
    is_missing = isinstance(error, DependencyNotInstalled | ModuleNotFoundError)
    for extra in _EXTRAS:
        if registered and is_missing and f".{extra}" in str(registered.entry_point):
            return f"pip install 'ppo_lab[{extra}]' ({error})"
    return describe_error(error) + ("; install it" if is_missing else "")


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
