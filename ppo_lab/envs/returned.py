"""Checks of what environments return: form, shape and type; numbers are accepted in any type.

The loop over environments calls these only for what its own, cheaper comparisons do not accept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = [
    *("STEP_FORM", "WrongReturn", "as_flag", "as_observation", "as_reward", "described"),
    *("infinite_component", "reset_observation"),
]

Array = np.ndarray[Any, Any]

STEP_FORM = "step() must return (observation, reward, terminated, truncated, info)"


class WrongReturn(Exception):  # noqa: N818 (it is reported as an EnvironmentFault)
    """An environment returned something else than it declared; the message says what."""


def as_observation(value: object, shape: tuple[int, ...], source: str = "step()") -> Array:
    """Return ``value`` as an array of numbers; raise ``WrongReturn`` unless it has ``shape``."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        raise WrongReturn(f"{source} returned a ragged observation, declared is {shape}") from None
    if array.dtype.kind not in "biuf":
        what = described(value) if array.dtype.kind == "O" else f"of type {array.dtype}"
        raise WrongReturn(f"{source} returned an observation {what}, declared are numbers")
    if array.shape != shape:
        wrong = f"an observation of shape {array.shape}, declared is {shape}"
        raise WrongReturn(f"{source} returned {wrong}")
    return array


def as_reward(value: object) -> float:
    """Return the one number in ``value``, which may be an array; raise ``WrongReturn`` if none."""
    number = _item(value)
    if isinstance(number, int | float):
        return float(number)
    raise WrongReturn(f"step() returned the reward {described(value)}, it must be one number")


def as_flag(name: str, value: object) -> bool:
    """Return ``value`` as a bool; raise ``WrongReturn`` unless it is one, 0 or 1."""
    flag = _item(value)
    if isinstance(flag, int) and flag in (0, 1):
        return bool(flag)
    raise WrongReturn(f"step() returned {name}={described(value)}, it must be a bool")


def reset_observation(returned: object, shape: tuple[int, ...]) -> Array:
    """Return the observation of what ``reset`` returned; raise ``WrongReturn`` for other forms."""
    form = "reset() must return (observation, info)"
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise WrongReturn(f"{form}, this one returned {described(returned)}")
    observation, info = returned
    if not isinstance(info, Mapping | None):  # two numbers are an observation, not a pair
        raise WrongReturn(f"{form}, this one's info is {described(info)}")
    return as_observation(observation, shape, "reset()")


def infinite_component(observation: Array) -> str | None:
    """Return the first component that is NaN or infinite, as ``observation[1] = nan``."""
    places = np.argwhere(~np.isfinite(observation)).tolist()
    if not places:
        return None
    index = f"[{', '.join(map(str, places[0]))}]" if places[0] else ""
    return f"observation{index} = {observation[tuple(places[0])]}"


def _item(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic) and value.size == 1:
        return value.item()
    return value


def described(value: object) -> str:
    """Return a short description of ``value``, such as "an array of shape (2,)"."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, tuple | list) and len(value) > 0:
        return f"a {type(value).__name__} of {len(value)} values"
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"
