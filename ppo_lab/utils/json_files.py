"""Writing files whole, and values as strict JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Any

__all__ = ["atomic_write", "restore", "strict", "to_jsonable", "write_json"]


def atomic_write(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` whole or not at all (temporary name, fsync, rename)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # gone already if all went well


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as indented, strictly valid JSON (no NaN or Infinity), whole."""
    text = json.dumps(content, indent=2, allow_nan=False, default=str)
    atomic_write(path, (text + "\n").encode())


def to_jsonable(value: Any) -> Any:  # noqa: ANN401 - any nesting of settings
    """Return ``value`` as JSON can hold it: enums as their values, infinity as "inf"."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return value


_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def strict(value: Any) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """Return ``value`` as JSON types only; what has no JSON form becomes its ``str``."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [strict(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy's arrays and scalars, tensors
        return strict(value.tolist())
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return _strict_float(float(value))
    return str(value)


def _strict_float(number: float) -> float | str:
    if math.isfinite(number):
        return number
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


def restore(value: Any) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """Return parsed JSON with the non-finite numbers that ``strict`` wrote as strings."""
    if isinstance(value, dict):
        return {key: restore(item) for key, item in value.items()}
    if isinstance(value, list):
        return [restore(item) for item in value]
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    return value
