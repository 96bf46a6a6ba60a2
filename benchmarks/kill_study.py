"""Check that a study loses nothing when its trials and its parent process are killed.

    python -m benchmarks.kill_study [--trials 60] [--seed 1]

Every few seconds one running trial is sent SIGKILL. After one third and two thirds of the study its
whole process group is, and the same command is started again. Linux only (reads /proc).
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import optuna

__all__ = ["Outcome", "kill_study", "processes_of"]

_MOST_S = 1800.0


class Started(Protocol):
    """What is asked of a command's process."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...


@dataclass
class Outcome:
    """Kills of a study, and its state at the end."""

    num_trials: int
    wall_s: float = 0.0
    num_trial_kills: int = 0
    num_parent_kills: int = 0
    states: dict[str, int] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    num_attempts: int = 0
    overwritten: list[str] = field(default_factory=list)
    """Files that changed after they were complete, or that two attempts wrote to."""
    left_behind: list[int] = field(default_factory=list)
    """Processes of the study that still run after it."""
    lost_results: list[int] = field(default_factory=list)
    """Finished trials without a result in their folder."""

    @property
    def is_exact(self) -> bool:
        """Whether each trial exists once, with its result, and nothing else exists."""
        return (
            self.numbers == list(range(self.num_trials))
            and sum(self.states.values()) == self.num_trials
            and not {"RUNNING", "WAITING"} & self.states.keys()
            and not (self.overwritten or self.left_behind or self.lost_results)
        )


def _begin(folder: Path, words: list[str], shown: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ppo_lab", *words]
    return subprocess.Popen(command, cwd=folder, stdout=shown, stderr=shown, start_new_session=True)


def kill_study(
    folder: Path,
    *,
    num_trials: int,
    trial_kill_s: tuple[float, float] = (3.0, 9.0),
    seed: int = 1,
    overrides: tuple[str, ...] = (),
    begin: Callable[[Path, list[str], IO[bytes]], Started] = _begin,
) -> Outcome:
    """Run a study in ``folder`` while killing it, with pauses within ``trial_kill_s``."""
    pick = random.Random(seed)
    words = [
        "study=default", "epsilon=interval(0.05,0.5)",
        "study.name=killed", f"study.num_trials={num_trials}", "study.num_workers=2",
        "study.max_retries=1000", "network=tiny", "total_steps=4096", "tracking=local",
        *overrides,
    ]  # fmt: skip
    study = folder / "outputs" / "studies" / "killed"
    outcome = Outcome(num_trials)
    sessions: list[int] = []
    hashes: dict[Path, str] = {}
    begin_s = time.monotonic()
    with (folder / "shown").open("ab") as shown:

        def start() -> Started:
            process = begin(folder, words, shown)
            sessions.append(process.pid)
            return process

        process = start()
        next_kill_s = time.monotonic() + pick.uniform(*trial_kill_s)
        parent_kills_at = [num_trials // 3, 2 * num_trials // 3]
        while process.poll() is None and time.monotonic() - begin_s < _MOST_S:
            time.sleep(0.1)
            outcome.overwritten += _watch(study, hashes)
            if parent_kills_at and len(hashes) >= parent_kills_at[0]:
                parent_kills_at.pop(0)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                outcome.num_parent_kills += 1
                outcome.left_behind += _alive_after(sessions[-1], 5.0)
                process = start()
            elif time.monotonic() > next_kill_s:
                next_kill_s = time.monotonic() + pick.uniform(*trial_kill_s)
                if trials := _trials_of(process.pid):
                    os.kill(pick.choice(trials), signal.SIGKILL)
                    outcome.num_trial_kills += 1
    outcome.wall_s = time.monotonic() - begin_s
    for session in sessions:
        outcome.left_behind += _alive_after(session, 5.0)
    outcome.overwritten += _watch(study, hashes)
    _read(study, outcome)
    return outcome


def processes_of(session: int) -> dict[int, int]:
    """Return the live processes of a session and their parents."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, parent, _, its_session = fields[:4]
        if int(its_session) == session and state != "Z":
            found[int(path.parent.name)] = int(parent)
    return found


def _trials_of(parent: int) -> list[int]:
    """Return a parent's trials: the children of its fork server."""
    tree = processes_of(parent)
    servers = {pid for pid, its_parent in tree.items() if its_parent == parent}
    return [pid for pid, its_parent in tree.items() if its_parent in servers]


def _alive_after(session: int, seconds: float) -> list[int]:
    deadline_s = time.monotonic() + seconds
    while (left := processes_of(session)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return list(left)


def _watch(study: Path, hashes: dict[Path, str]) -> list[str]:
    """Store each new result, and return those that have changed."""
    changed = []
    for path in study.glob("trials/**/result.json"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if hashes.setdefault(path, digest) != digest:
            changed.append(str(path))
    return changed


def _read(study: Path, outcome: Outcome) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{study / 'study.db'}")
    trials = optuna.load_study(study_name="killed", storage=storage).trials
    outcome.numbers = [trial.number for trial in trials]
    outcome.states = dict(collections.Counter(trial.state.name for trial in trials))
    outcome.lost_results = [
        trial.number
        for trial in trials
        if not (Path(trial.user_attrs.get("folder", "none")) / "result.json").is_file()
    ]
    for path in study.glob("trials/**/metrics.jsonl"):
        outcome.num_attempts += 1
        if list(_iterations(path)) != sorted(set(_iterations(path))):
            outcome.overwritten.append(str(path))  # two runs wrote into one file


def _iterations(path: Path) -> Iterator[int]:
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield json.loads(line)["iteration"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = kill_study(Path(folder), num_trials=arguments.trials, seed=arguments.seed)
        shown = (Path(folder) / "shown").read_text()
    print(json.dumps(vars(outcome), indent=2))
    print("exact" if outcome.is_exact else f"NOT EXACT\n{shown}")
    sys.exit(0 if outcome.is_exact else 1)


if __name__ == "__main__":
    main()
