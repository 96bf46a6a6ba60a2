"""What holds for all tests, whoever starts them, and from wherever."""

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def program_cache(tmp_path_factory):
    """None reads or fills the cache of programs of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPO_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "programs"))
        yield


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """Commands that tests start can be ended by Ctrl-C: a shell's ``&`` would have it ignored."""
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
    """A database with Optuna's tables and no study: to make them takes longer than most tests."""
    import optuna

    path = tmp_path_factory.mktemp("tables") / "study.db"
    optuna.storages.RDBStorage(f"sqlite:///{path}").engine.dispose()
    return path
