"""Exact snapshots of Gymnasium environments, as arrays and JSON values; nothing is pickled.

Known are the environments of Gymnasium's classic control, toy text and MuJoCo, and those that
define ``state_dict()`` and ``load_state_dict(state)``, whose values are arrays and JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import gymnasium

__all__ = ["is_exact", "restore", "snapshot"]

_KNOWN = tuple(f"gymnasium.envs.{name}." for name in ("classic_control", "toy_text", "mujoco"))
_STATELESS = ("OrderEnforcing", "PassiveEnvChecker")  # wrappers that a reset brings into order


def is_exact(env: gymnasium.Env[Any, Any]) -> bool:
    """Return whether all of the state of ``env`` and its wrappers can be taken and restored."""
    *wrappers, base = _layers(env)
    known = all(_own_state(w) or type(w).__name__ in ("TimeLimit", *_STATELESS) for w in wrappers)
    return known and (_own_state(base) or type(base).__module__.startswith(_KNOWN))


def snapshot(env: gymnasium.Env[Any, Any], name: str, tensors: dict[str, Tensor]) -> list[Any]:
    """Return the state of ``env`` as JSON, a value for each of its layers.

    Copies of its arrays are added to ``tensors``, under names that begin with ``name``.
    """
    states = map(_state, _layers(env))
    return [_pack(state, f"{name}.{n}", tensors) for n, state in enumerate(states)]


def restore(env: gymnasium.Env[Any, Any], packed: list[Any], tensors: Mapping[str, Tensor]) -> None:
    """Set ``env``, which has been reset before, to a state that ``snapshot`` returned."""
    for layer, value in zip(_layers(env), packed, strict=True):
        state = _unpack(value, tensors)
        if "own" in state:
            layer.load_state_dict(state["own"])
        if "data" in state:
            _restore_mujoco(layer, state["data"])
        if (random := state.get("random")) is not None:
            layer.np_random.bit_generator.state = random
        for name, attribute in state.get("attributes", {}).items():
            setattr(layer, name, attribute)


def _layers(env: gymnasium.Env[Any, Any]) -> list[Any]:
    """Return the wrappers of ``env``, outermost first, then the environment inside."""
    layers: list[Any] = [env]
    while layers[-1] is not env.unwrapped:
        layers.append(layers[-1].env)
    return layers


def _own_state(layer: object) -> bool:
    return all(callable(getattr(type(layer), m, None)) for m in ("state_dict", "load_state_dict"))


def _state(layer: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the state of one layer, as arrays and plain values."""
    state: dict[str, Any] = {"own": layer.state_dict()} if _own_state(layer) else {}
    if layer is not layer.unwrapped:  # a wrapper
        is_limit = type(layer).__name__ == "TimeLimit"
        return (
            {"attributes": {"_elapsed_steps": layer._elapsed_steps}, **state} if is_limit else state
        )
    if layer._np_random is not None:
        state["random"] = layer._np_random.bit_generator.state
    if "own" in state:
        return state
    plain = {name: value for name, value in vars(layer).items() if _is_plain(value)}
    if ".mujoco." in type(layer).__module__:
        return state | {"attributes": plain, "data": _mujoco_arrays(layer)}
    return state | {"attributes": plain}


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    return isinstance(value, bool | int | float | str | np.generic | None)


def _mujoco_arrays(env: Any) -> dict[str, np.ndarray[Any, Any]]:  # noqa: ANN401
    """Return the integration state and all arrays whose size does not depend on contacts.

    The integration state alone is not enough: observations and rewards of Ant and Humanoid contain
    positions and forces that MuJoCo computes before it integrates, so they lag behind it.
    """
    mujoco, spec = sys.modules["mujoco"], sys.modules["mujoco"].mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(env.model, spec))
    mujoco.mj_getState(env.model, env.data, integration, spec)
    empty = mujoco.MjData(env.model)  # arrays that depend on contacts have no elements in it
    values = {name: getattr(empty, name) for name in dir(empty) if not name.startswith("_")}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    fixed = [name for name, value in arrays.items() if value.size and value.flags.writeable]
    return {"": integration} | {name: getattr(env.data, name) for name in fixed}


def _restore_mujoco(env: Any, data: dict[str, np.ndarray[Any, Any]]) -> None:  # noqa: ANN401
    mujoco, spec = sys.modules["mujoco"], sys.modules["mujoco"].mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(env.model, env.data, data.pop(""), spec)
    for name, value in data.items():
        getattr(env.data, name)[...] = value


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    """Return ``value`` as JSON, in which arrays are named; they are copied to ``tensors``."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind != "U":
        tensors[name] = torch.from_numpy(np.array(value))
        return {"array": name, "is_scalar": isinstance(value, np.generic)}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {k: _pack(v, f"{name}.{k}", tensors) for k, v in value.items()}}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(v, f"{name}.{n}", tensors) for n, v in enumerate(value)]}
    if isinstance(value, bool | int | float | str | None):
        return value  # NumPy's words become text
    raise TypeError(f"{name} is a {type(value).__name__}, neither an array nor a JSON value")


def _unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
    if not isinstance(packed, dict):
        return packed
    if "array" in packed:
        array = tensors[packed["array"]].numpy().copy()
        return array[()] if packed["is_scalar"] else array
    if "dict" in packed:
        return {key: _unpack(value, tensors) for key, value in packed["dict"].items()}
    ((kind, values),) = packed.items()
    unpacked = [_unpack(value, tensors) for value in values]
    return tuple(unpacked) if kind == "tuple" else unpacked
