"""Writing files whole, and values as strict JSON."""

from __future__ import annotations

import json
import math
import os
from enum import Enum
from pathlib import Path
from typing import Any

__all__ = ["plain", "write_json", "write_whole"]


def write_whole(path: Path, content: bytes) -> None:
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
    write_whole(path, (text + "\n").encode())


def plain(value: Any) -> Any:  # noqa: ANN401 - any nesting of settings
    """Return ``value`` as JSON can hold it: enums as their values, infinity as "inf"."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return value
