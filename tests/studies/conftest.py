"""Fixtures of the tests of studies."""

import sqlite3

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine


@pytest.fixture(scope="session", autouse=True)
def quick_commits():
    """Let this process not wait for its disk at every commit; no test cuts the power."""

    def no_fsync(connection, _):
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", no_fsync)
    yield
    event.remove(Engine, "connect", no_fsync)
