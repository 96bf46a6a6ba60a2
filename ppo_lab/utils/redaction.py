"""Masks passwords and tokens in whatever leaves the process: files, logs, terminal, W&B.

Recognised are credentials in URLs, the usual shapes of tokens, values whose key sounds secret, and
the values of environment variables whose name does, and of netrc.
"""

from __future__ import annotations

import functools
import logging
import netrc
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from ppo_lab.utils.json_files import atomic_write

__all__ = ["REDACTED", "mask", "mask_file", "mask_output", "mask_values", "printable"]

REDACTED = "..."
"""Replaces a value that must not be printed."""

_SECRET = r"(?i:pass(?:word|wd|phrase)|secret|token|(?:api|access|private)_?key|credentials?)"
_BEGIN = r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))"  # of a word, also in camelCase
_SECRET_KEY = re.compile(
    rf"{_BEGIN}(?:{_SECRET}|(?i:pass))(?![a-z])(?!(?<=[A-Z])[A-Z])"
)  # not TOKENIZERS
# `//user:password@`, whose password may hold a slash, and `//token@`; then `user:password@`.
_IN_URL = re.compile(r"""//(?:[^\s'"<>/@:]*:[^\s'"<>]*|[^\s'"<>/@]+)@(?=[\w\[])""")
_WITHOUT_SCHEME = re.compile(r"""(?<![\w/.:@+-])[\w.+-]+:[^\s'"<>@/,]{3,}@(?=[\w\[])""")
_TOKEN = re.compile(
    r"\b(?:(?:wandb_v\d+|hf|gh[opsur]|github_pat|npm)_|glpat-|xox[a-z]-|[sp]k-|pypi-|AKIA|ASIA|AIza)"
    r"[\w-]{8,}|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*|(?i:\bbearer )\S{8,}"
)
# A reference to a variable is not its value, and a stored command needs it again.
_ASSIGNED = re.compile(
    rf"""({_BEGIN}{_SECRET}["']?\s*[=:]\s*)(?!\.\.\.|["']?\$\{{|(?i:none|null)\b)"""
    r"""("[^"]*"|'[^']*'|[^\s"',;&{}()\[\]]+)"""
)
_SHORTEST = 6  # characters of a variable's value that is looked for everywhere


def mask(text: str) -> str:
    """Return ``text`` with passwords and tokens replaced by ``...``.

    Example:
        >>> mask("url=http://me:canary@host/path, api_key=canary")
        'url=http://...@host/path, api_key=...'
    """
    for literal in _literals():
        text = text.replace(literal, REDACTED)
    text = _IN_URL.sub(f"//{REDACTED}@", text)
    text = _WITHOUT_SCHEME.sub(f"{REDACTED}@", text)
    text = _TOKEN.sub(REDACTED, text)
    return _ASSIGNED.sub(rf"\1{REDACTED}", text)


def mask_values(value: Any) -> Any:  # noqa: ANN401 - any nesting
    """Return any nesting of dicts and lists with its strings masked.

    Example:
        >>> mask_values({"kwargs": {"password": "canary", "num_tokens": 3}})
        {'kwargs': {'password': '...', 'num_tokens': 3}}
    """
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, list | tuple):
        return [mask_values(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: REDACTED if _is_secret(key, item) else mask_values(item) for key, item in value.items()
    }


def mask_file(path: Path) -> None:
    """Mask a text file that another library has written, if there is anything to mask."""
    text = path.read_text()
    if (masked := mask(text)) != text:
        atomic_write(path, masked.encode())


def printable(text: object) -> str:
    r"""Return ``text`` masked and on one line, its control characters escaped, for a terminal.

    Example:
        >>> printable("a\x1b[31m\nb")
        'a\\x1b[31m\\nb'
    """
    shown = mask(str(text))
    if shown.isprintable():
        return shown
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)


def mask_output() -> None:
    """Mask what this process logs from now on, and the traceback of an exception that ends it."""
    make = logging.getLogRecordFactory()
    if getattr(make, "masks", False):
        return
    logging.setLogRecordFactory(_masking(make))
    sys.excepthook = _print_masked


def _masking(make: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    def make_masked(*args: Any, **kwargs: Any) -> logging.LogRecord:  # noqa: ANN401
        record = make(*args, **kwargs)
        record.msg, record.args = mask(record.getMessage()), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = mask("".join(traceback.format_exception(*record.exc_info))).rstrip()
        return record

    make_masked.masks = True  # type: ignore[attr-defined]
    return make_masked


def _print_masked(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    sys.stderr.write(mask("".join(traceback.format_exception(kind, error, trace))))


def _is_secret(key: object, value: object) -> bool:
    """Return whether ``key`` sounds secret; ``pass_frac`` does not, since its value is a number."""
    found = _SECRET_KEY.search(str(key))
    if found is None or value in ("", None) or isinstance(value, bool | float | dict | list):
        return False
    return isinstance(value, str) or found.end() == len(str(key))


def _literals() -> Iterator[str]:
    """Yield the secrets of this process's environment, the longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if _SECRET_KEY.search(name) and not value.startswith("/")  # the path of a file
    }
    path = os.environ.get("NETRC") or Path.home() / ".netrc"
    found |= _netrc_passwords(Path(path))
    return iter(sorted((v for v in found if len(v) >= _SHORTEST), key=len, reverse=True))


@functools.cache
def _netrc_passwords(path: Path) -> frozenset[str]:
    try:
        hosts = netrc.netrc(path).hosts.values()
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return frozenset()  # there is no such file, or none that W&B could read
    return frozenset(password for _, _, password in hosts if password)
