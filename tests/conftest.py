"""Fixtures of all tests."""

import os
import signal
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LONGEST = (
    "compiler/test_compiled.py", "studies/test_command.py", "forecasting/test_forecast.py",
    "memory/test_options.py", "cli/test_cli.py", "studies/test_scheduler.py",
    "studies/store/test_postgres.py", "config/test_error_messages.py",
    "forecasting/test_parameter_cost.py", "cli/test_launchers.py", "workers/test_stacked.py",
    "tracking/test_wandb_server.py", "studies/results/test_wandb.py",
)  # fmt: skip
"""Files that begin first, so that the processes of ``-n 2 --dist loadfile`` end together."""


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist would sort files by their number of tests


def pytest_collection_modifyitems(items):
    rank = {TESTS / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def program_cache(tmp_path_factory):
    """Use a temporary cache of compiled programs instead of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            folder = folder.parent  # one for all processes
        patch.setenv("PPO_LAB_CACHE", str(folder / "programs"))
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


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have configs find a CUDA device."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
