"""Whether Gymnasium can make an environment that we can train in, said before a run begins."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from ppo_lab.envs.base import EnvSpec
from ppo_lab.envs.gymnasium_backend import UnsupportedSpaceError, spec_of_spaces
from ppo_lab.errors import ConfigError, nearest

__all__ = ["check_gymnasium"]

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
    guess = nearest(env_id.rpartition(":")[2], valid)
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
