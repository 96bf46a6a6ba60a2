"""The reward of texts: a task's own, or the user's function ``module:function``."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from ppo_lab.envs.guard import EnvGuard, describe_error
from ppo_lab.envs.gymnasium_spec import imports_module
from ppo_lab.envs.returned import WrongReturn, described
from ppo_lab.envs.time_limit import OverdueCall
from ppo_lab.utils.errors import ConfigError, EnvironmentFault

__all__ = ["RewardFunction", "check_reward", "load_reward", "rewards_of"]

RewardFunction = Callable[[list[str]], Any]
"""Maps texts, prompts included, to as many numbers."""


def load_reward(name: str) -> RewardFunction:
    """Import the function ``module:function``; raise ``ConfigError`` if there is none."""
    module, function = imports_module(name), name.partition(":")[2]
    if not module or not function or ":" in function:
        raise ConfigError("env.reward", name, "must be module:function, or null for the task's own")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever the module raises
        text = f"cannot import {module}: {describe_error(error)}"
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            text += "; add its folder to the path: PYTHONPATH=FOLDER"
        raise ConfigError("env.reward", name, text) from error
    if not callable(found):
        raise ConfigError("env.reward", name, f"{module} has no function {function}")
    return found


def check_reward(
    name: str | None, function: RewardFunction, texts: Sequence[str], timeout_s: float | None
) -> None:
    """Raise ``ConfigError`` unless ``function`` rewards ``texts`` with finite numbers in time."""
    guard = EnvGuard(1, 1, timeout_s)
    try:
        with guard("reward"):
            rewards_of(function, texts)
    except EnvironmentFault as fault:
        error = fault.__cause__ or fault
        if isinstance(error, ConfigError):
            raise error from None
        told = str(error) if isinstance(error, WrongReturn) else describe_error(error)
        if isinstance(error, OverdueCall):
            told = "did not return within env.timeout_s"
        raise ConfigError("env.reward", name, told) from error
    finally:
        guard.close()


def rewards_of(function: RewardFunction, texts: Sequence[str]) -> list[float]:
    """Return the rewards of ``texts``; raise ``WrongReturn`` unless they are finite numbers."""
    returned = function(list(texts))
    try:
        rewards = [float(reward) for reward in returned]
    except (TypeError, ValueError):
        form = f"must return a list of numbers, one for each of the {len(texts)} texts"
        raise WrongReturn(f"{form}, returned {described(returned)}") from None
    if len(rewards) != len(texts):
        raise WrongReturn(f"returned {len(rewards)} numbers for {len(texts)} texts")
    for reward, text in zip(rewards, texts, strict=True):
        if not math.isfinite(reward):
            raise WrongReturn(f"returned {reward} for {text[:80]!r}")
    return rewards
