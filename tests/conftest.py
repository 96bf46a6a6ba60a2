"""Fixtures of all tests."""

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def program_cache(tmp_path_factory):
    """Use a temporary cache of compiled programs instead of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPO_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "programs"))
        yield


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """Let Ctrl-C end the commands that tests start, even if a shell's ``&`` ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def server():
    from tests.helpers.postgres_server import PostgresServer, why_not

    if reason := why_not():
        pytest.skip(reason)
    running = PostgresServer()
    yield running
    running.close()


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """An SQLite file with Optuna's tables and no study; creating it is slower than most tests."""
    import optuna

    path = tmp_path_factory.mktemp("tables") / "study.db"
    optuna.storages.RDBStorage(f"sqlite:///{path}").engine.dispose()
    return path
