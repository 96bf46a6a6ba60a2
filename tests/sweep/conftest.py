"""What tests of several files need, made once: databases."""

import optuna
import pytest
from postgres_server import PostgresServer, why_not


@pytest.fixture(scope="session")
def server():
    if reason := why_not():
        pytest.skip(reason)
    running = PostgresServer()
    yield running
    running.close()


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """A database with Optuna's tables and no study: to make them takes longer than most tests."""
    path = tmp_path_factory.mktemp("tables") / "study.db"
    optuna.storages.RDBStorage(f"sqlite:///{path}").engine.dispose()
    return path
