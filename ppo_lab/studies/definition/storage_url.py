"""The storage URL of a study: SQLite in its folder, or PostgreSQL for several machines."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from ppo_lab.config.study import STORAGE_VARIABLE
from ppo_lab.utils.errors import REDACTED, ConfigError

__all__ = ["masked", "storage_url"]


def storage_url(storage: str, folder: Path) -> URL:
    """Return the storage of a study; ``auto`` is PPO_LAB_STORAGE, else a file in ``folder``."""
    key = "study.storage"
    if storage == "auto":
        storage = os.environ.get(STORAGE_VARIABLE, "") or f"sqlite:///{folder / 'study.db'}"
    allowed = "must be auto, sqlite:///file or postgresql://user@host/database"
    # The value may hold a password, and so may what was typed, which would be shown for it.
    try:
        url = make_url(storage)
    except (ArgumentError, ValueError):  # such as a port that is no number
        raise ConfigError(key, REDACTED, allowed) from None
    if url.get_backend_name() == "sqlite" and url.database:
        return url
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        try:
            import psycopg  # noqa: F401
        except ImportError:
            allowed = "needs a driver: pip install 'ppo_lab[postgres]'"
            raise ConfigError(key, REDACTED, allowed) from None
        return url.set(drivername="postgresql+psycopg")
    raise ConfigError(key, REDACTED, f"{allowed}, not {url.get_backend_name()}")


def masked(url: URL) -> str:
    """Return ``url`` without its password, for files and messages."""
    return url.set(query={}).render_as_string(hide_password=True)
