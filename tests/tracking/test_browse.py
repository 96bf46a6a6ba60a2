"""``python -m ppo_lab.browse``: W&B's terminal page and optuna-dashboard."""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from ppo_lab import browse


@pytest.mark.parametrize("start", [".", "outputs", "outputs/wandb", "outputs/runs/one"])
def test_browse_finds_the_folder_that_directly_holds_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    runs = tmp_path / "outputs" / "wandb"
    (runs / "offline-run-20260101_000000-a").mkdir(parents=True)
    (tmp_path / "outputs" / "runs" / "one").mkdir(parents=True)
    calls: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: calls.append(command))
    monkeypatch.chdir(tmp_path if start != "." else tmp_path / "outputs")
    browse.main([start])
    assert calls[0][1:] == ["-m", "wandb", "leet", str(runs)]


def test_browse_says_in_one_line_that_there_is_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert browse.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path) in error


class Dashboard(SimpleNamespace):
    """Takes the place of the module ``optuna_dashboard``; keeps what it is asked to serve."""

    served: list

    def run_server(self, storage, host: str, port: int) -> None:
        self.served.append((storage, host, port))
        if port == 1:
            raise OSError(errno.EACCES, "Permission denied")


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Dashboard:
    module = Dashboard(served=[], __spec__=object())
    monkeypatch.setitem(sys.modules, "optuna_dashboard", module)
    return module


def make_study(folder: Path, name: str, num_trials: int) -> None:
    folder.mkdir(parents=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    study = optuna.create_study(study_name=name, storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), num_trials)
    storage.remove_session()
    storage.engine.dispose()


def test_one_study_is_served_live(tmp_path: Path, dashboard: Dashboard) -> None:
    make_study(tmp_path / "outputs" / "studies" / "a", "a", 1)
    assert browse.main(["--optuna", str(tmp_path / "outputs")]) == 0
    ((storage, host, port),) = dashboard.served
    assert (host, port) == ("127.0.0.1", 8080)  # nobody else's machine
    study = optuna.load_study(study_name="a", storage=storage)
    study.optimize(lambda trial: 0.0, 1)
    path = tmp_path / "outputs" / "studies" / "a" / "study.db"
    url = f"sqlite:///{path}"
    assert len(optuna.load_study(study_name="a", storage=url).trials) == 2


def test_several_studies_are_copied_and_a_damaged_one_is_named(
    tmp_path: Path, dashboard: Dashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(tmp_path / "studies" / "a", "a", 2)
    make_study(tmp_path / "studies" / "b", "a", 1)  # a name that is taken
    (tmp_path / "studies" / "c").mkdir()
    (tmp_path / "studies" / "c" / "study.db").write_text("no database at all")
    assert browse.main(["--optuna", str(tmp_path / "studies")]) == 0
    ((storage, *_),) = dashboard.served
    found = {
        s.study_name: len(storage.get_all_trials(s._study_id)) for s in storage.get_all_studies()
    }
    assert found == {"a": 2, f"a in {tmp_path / 'studies' / 'b'}": 1}
    error = capsys.readouterr().err
    assert "c/study.db cannot be read: (sqlite3.DatabaseError) file is not a database" in error
    assert "2 studies as they are now" in error


@pytest.mark.parametrize("why", ["none", "damaged", "port", "missing"])
def test_what_cannot_be_served_is_one_line(
    tmp_path: Path, dashboard: Dashboard, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, why: str,
) -> None:  # fmt: skip
    words = ["--optuna", str(tmp_path), *(["--port", "1"] if why == "port" else [])]
    if why == "port":
        make_study(tmp_path / "a", "a", 1)
    if why == "damaged":
        (tmp_path / "study.db").write_text("no database at all")
    if why == "missing":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert browse.main(words) == (1 if why == "damaged" else 2)
    told = {"none": "no studies", "damaged": "cannot be read", "port": "port 1 cannot be used"}
    lines = capsys.readouterr().err.splitlines()
    assert told.get(why, "pip install 'ppo_lab[dashboard]'") in lines[-1]
