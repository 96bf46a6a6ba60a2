"""A storage that is away for a while: said at once, waited for, and nothing is lost or doubled."""

import dataclasses
import signal
import sqlite3
import threading
import time

import pytest
from sqlalchemy.engine import make_url

from ppo_lab.studies.scheduler import Ending
from ppo_lab.studies.store import database, retry
from tests.helpers.engine import FormulaPool, ended
from tests.helpers.postgres_server import why_not
from tests.helpers.studies import plan_of, trials_of

AWAY_S = 1.5
DOWN = make_url("postgresql+psycopg://lab@127.0.0.1:1/lab")


class LosesStorage(FormulaPool):
    """Takes the storage away when the second trial starts; it comes back after a while."""

    def __init__(self, take_away, give_back):
        super().__init__(max_running=1)
        self._take_away, self._timer = take_away, threading.Timer(AWAY_S, give_back)

    def start(self, task):
        slot = super().start(task)
        if len(self.tasks) == 2:
            self._take_away()
            self._timer.start()
        return slot

    def close(self):
        if self._timer.ident is not None:
            self._timer.join()
        super().close()


def check_outage(plan, pool, tmp_path, shown):
    assert ended(plan, pool) == (Ending.complete, 0)
    url = plan.url.render_as_string(hide_password=False)
    attempts = [(t.number, t.user_attrs["attempt"]) for t in trials_of(tmp_path, url, plan.name)]
    assert attempts == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert [task.number for task in pool.tasks] == [0, 1, 2, 3]
    output = shown.readouterr()
    assert "the storage is away" in output.err
    if (password := plan.url.password) is not None:
        assert str(password) not in output.out + output.err
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or str(password).encode() not in path.read_bytes(), path


def test_a_locked_file_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(database, "_SQLITE_LOCKED_S", 0.2)
    plan = plan_of("study.num_trials=4", "study.num_reports=2")
    held = []

    def lock():
        held.append(sqlite3.connect(plan.folder / "study.db", check_same_thread=False))
        held[0].execute("BEGIN EXCLUSIVE")

    pool = LosesStorage(lock, lambda: held[0].close())
    check_outage(plan, pool, tmp_path, capsys)


@pytest.mark.postgres
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_stopped_server_is_waited_for(server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plan = plan_of("study.num_trials=4", "study.num_reports=2", "study.name=away")
    url = make_url(server.url).set(drivername="postgresql+psycopg")
    pool = LosesStorage(server.stop, server.start)
    check_outage(dataclasses.replace(plan, url=url), pool, tmp_path, capsys)


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A study whose server does not run."""
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("psycopg")
    plan = plan_of("tracking.terminal=none", "study.storage_timeout_s=0.5")
    return dataclasses.replace(plan, url=DOWN)


def test_a_server_that_is_down_at_the_start_is_said_at_once(plan, capsys):
    begun_s = time.monotonic()
    assert ended(plan, FormulaPool()) == (Ending.storage_lost, 1)
    assert time.monotonic() - begun_s < 5.0
    line, *_ = capsys.readouterr().err.splitlines()
    assert line.startswith("the storage is away (open, 0 s); trying again: ")
    assert "refused" in line


def test_the_first_ctrl_c_ends_a_command_that_waits_for_its_server(plan, monkeypatch):
    def press(seconds):
        signal.raise_signal(signal.SIGINT)
        pytest.fail(f"it went on to wait for {seconds} s")

    monkeypatch.setattr(retry.time, "sleep", press)
    with pytest.raises(KeyboardInterrupt):
        ended(plan, FormulaPool())


def test_ctrl_c_ends_a_study_that_waits_for_its_storage_with_no_trial_running(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    plan = plan_of("study.num_trials=4", "study.num_reports=1")

    def claim(store):
        signal.raise_signal(signal.SIGINT)
        raise retry.PoolTimeoutError("the storage is away")

    monkeypatch.setattr("ppo_lab.studies.store.trial_store.TrialStore.claim", claim)
    assert ended(plan, FormulaPool()) == (Ending.storage_lost, 130)
