"""Check that a study loses nothing when its storage is away.

    python -m benchmarks.storage_outage [--outages 20] [--seconds 60] [--seed 1] [--write]

Half of the outages stop a private PostgreSQL server, half lock an SQLite file. Each is in a study
of its own: the storage goes away at a random moment of its trials, and comes back later. The
result of every trial must then be stored once, under its first attempt.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import optuna

from benchmarks.result_page import publish, table
from tests.helpers.postgres_server import PostgresServer, why_not

__all__ = ["Outcome", "run_through_outage"]

_NUM_TRIALS = 12


@dataclass
class Outcome:
    """A study through one outage."""

    kind: str
    away_s: float
    """Length of the outage, which began after so many trials:"""
    began_after: int = 0
    exit_status: int = -1
    states: dict[str, int] = field(default_factory=dict)
    num_results: int = 0
    """Results of trials in the study's folder."""
    num_attempts: int = 0
    was_shown: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether each trial ran once and is stored, and the outage was shown."""
        return (
            self.exit_status == 0
            and sum(self.states.values()) == self.num_results == self.num_attempts == _NUM_TRIALS
            and not {"RUNNING", "WAITING", "FAIL"} & self.states.keys()
            and self.was_shown
        )


def run_through_outage(
    folder: Path,
    url: str,
    take_away: Callable[[], None],
    give_back: Callable[[], None],
    *,
    away_s: float,
    began_after: int,
) -> Outcome:
    """Run a study in ``folder`` and take its storage away for ``away_s`` seconds."""
    kind = url.partition(":")[0].partition("+")[0]
    outcome = Outcome(kind, away_s, began_after)
    command = [
        sys.executable, "-m", "ppo_lab", "study=default", "epsilon=interval(0.05,0.5)",
        "study.name=away", f"study.num_trials={_NUM_TRIALS}", "study.num_workers=2",
        "network=tiny", "total_steps=8192", "tracking=local",
    ]  # fmt: skip
    study = folder / "outputs" / "studies" / "away"
    with (folder / "shown").open("wb") as shown:
        process = subprocess.Popen(
            command, cwd=folder, stdout=shown, stderr=shown,
            env={**os.environ, "PPO_LAB_STORAGE": url, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        while process.poll() is None and _num_results(study) < began_after:
            time.sleep(0.02)
        take_away()
        time.sleep(away_s)
        give_back()
        outcome.exit_status = process.wait()
    outcome.was_shown = b"the storage is away" in (folder / "shown").read_bytes()
    outcome.num_results = _num_results(study)
    storage = optuna.storages.RDBStorage(url.replace("postgresql:", "postgresql+psycopg:"))
    trials = optuna.load_study(study_name="away", storage=storage).trials
    outcome.states = dict(collections.Counter(trial.state.name for trial in trials))
    outcome.num_attempts = sum(trial.user_attrs.get("attempt", 0) for trial in trials)
    optuna.delete_study(study_name="away", storage=storage)
    storage.engine.dispose()
    return outcome


def _num_results(study: Path) -> int:
    return sum(len(list(study.glob(f"trials/{each}/result.json"))) for each in ("*", "*/*"))


class _LockedFile:
    """An SQLite file that can be locked against all others."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._holder: sqlite3.Connection | None = None

    def lock(self) -> None:
        self._holder = sqlite3.connect(self._path, timeout=60.0)
        self._holder.execute("BEGIN EXCLUSIVE")

    def unlock(self) -> None:
        assert self._holder is not None
        self._holder.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outages", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="save the page in benchmarks/results")
    arguments = parser.parse_args()
    if reason := why_not():
        sys.exit(f"no PostgreSQL: {reason}")
    pick, outcomes = random.Random(arguments.seed), []
    with contextlib.closing(PostgresServer()) as server:
        for number in range(arguments.outages):
            with tempfile.TemporaryDirectory() as name:
                folder, file = Path(name), Path(name) / "study.db"
                if number % 2:
                    locked = _LockedFile(file)
                    storage = (f"sqlite:///{file}", locked.lock, locked.unlock)
                else:
                    storage = (server.url, server.stop, server.start)
                began_after = pick.randrange(1, _NUM_TRIALS - 2)
                outcome = run_through_outage(
                    folder, *storage, away_s=arguments.seconds, began_after=began_after
                )
                print(json.dumps(vars(outcome)), flush=True)
                if not outcome.is_exact:
                    print((folder / "shown").read_text())
                outcomes.append(outcome)
    publish(
        "storage_outage", "Studies whose storage is away", _page(outcomes), write=arguments.write
    )
    sys.exit(0 if all(outcome.is_exact for outcome in outcomes) else 1)


def _page(outcomes: Sequence[Outcome]) -> list[str]:
    rows = []
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.kind == kind]
        num_stored = sum(sum(outcome.states.values()) for outcome in mine)
        rows.append([kind, len(mine), sum(outcome.is_exact for outcome in mine),
                     sum(outcome.was_shown for outcome in mine), _NUM_TRIALS * len(mine),
                     num_stored, sum(outcome.num_attempts for outcome in mine)])  # fmt: skip
    what = (
        f"Studies of {_NUM_TRIALS} trials on two workers whose storage went away for "
        f"{outcomes[0].away_s:g} s after a trial drawn at random: a PostgreSQL server was stopped "
        "at once, or an SQLite file locked against everybody. Nothing lost or doubled: the study "
        "ended with exit status 0, and each trial ran once, has its result in its folder and is "
        "stored once, as finished."
    )
    header = ["storage", "outages", "nothing lost or doubled", "said on the screen",
              "trials asked", "trials stored", "trials run"]  # fmt: skip
    return [what, table(header, rows)]


if __name__ == "__main__":
    main()
