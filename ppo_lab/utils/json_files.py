"""Strictly valid JSON, files that are replaced atomically, and waiting for room on a full disk."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Any

__all__ = ["atomic_write", "flat", "from_jsonable", "is_disk_full", "parse_object", "read_bounded"]
__all__ += ["retry_while_full", "to_jsonable", "write_json"]

_LOG = logging.getLogger(__name__)

_FULL_PAUSE_S = 0.5
_OF_NON_FINITE = (b'NaN"', b'nfinity"', b'inf"', b"\\u")
# "inf" is an earlier spelling in settings; both are read.
_NON_FINITE = {"NaN": math.nan} | {
    sign + word: float(sign + word) for word in ("Infinity", "inf") for sign in ("", "-")
}


def atomic_write(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` atomically (temporary file, fsync, rename)."""
    # Random, since processes in two containers can have the same id.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # gone already if all went well


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``path`` atomically, as indented JSON; see ``to_jsonable``."""
    text = json.dumps(to_jsonable(content), indent=2, allow_nan=False)
    atomic_write(path, (text + "\n").encode())


def is_disk_full(error: BaseException) -> bool:
    """Return whether ``error`` says that the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def retry_while_full(write: Callable[[], object], patience_s: list[float]) -> None:
    """Call ``write`` until there is room for it; waiting uses up the one number of ``patience_s``.

    Raises:
        OSError: There is no room, or another reason.
    """
    is_said = False
    while True:
        try:
            write()
        except OSError as error:
            if not is_disk_full(error) or patience_s[0] <= 0:
                raise
            if not is_said:
                _LOG.warning("what has ended waits for room to be written: %s", error)
            is_said = True
            patience_s[0] -= _FULL_PAUSE_S
            time.sleep(_FULL_PAUSE_S)
        else:
            return


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file from elsewhere; never wait for a pipe or a device.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no regular file, or larger than ``max_bytes``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path}: is not a regular file")
        if (size := status.st_size) > max_bytes:
            raise ValueError(f"{path}: has {size:,} bytes; at most {max_bytes:,} are read")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(size)
    finally:
        os.close(descriptor)


def parse_object(text: bytes, where: object) -> dict[str, Any]:
    """Return a JSON object from elsewhere, with its non-finite numbers as floats.

    Raises:
        ValueError: ``text`` is something else; the message begins with ``where``.
    """
    try:
        content = json.loads(text)
        if any(part in text for part in _OF_NON_FINITE):  # without them it takes a fifth
            content = from_jsonable(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{where}: holds no JSON object but a {type(content).__name__}")
    return content


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings with their dotted keys; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_jsonable(value: Any) -> Any:  # noqa: ANN401 - any nesting
    """Return any nesting of mappings, sequences, sets, enums, arrays and scalars in JSON types.

    Enums become their values, arrays and tensors lists, NaN and infinity the strings "NaN",
    "Infinity" and "-Infinity", and anything else its ``str``.

    Example:
        >>> to_jsonable({"loss": float("nan"), "hidden": (64, 64)})
        {'loss': 'NaN', 'hidden': [64, 64]}
    """
    if isinstance(value, Enum):
        return to_jsonable(value.value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy's arrays and scalars, tensors
        return to_jsonable(value.tolist())
    if isinstance(value, Integral):
        return int(value)
    if not isinstance(value, Real):
        return str(value)
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def from_jsonable(value: Any) -> Any:  # noqa: ANN401 - parsed JSON
    """Return parsed JSON with the non-finite numbers that ``to_jsonable`` wrote as strings.

    Example:
        >>> from_jsonable({"loss": "NaN", "bounds": ["-Infinity", 1.0]})
        {'loss': nan, 'bounds': [-inf, 1.0]}
    """
    if isinstance(value, dict):
        return {key: from_jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_jsonable(item) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value
