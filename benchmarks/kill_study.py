"""Check that a study loses nothing when its trials and its parent process are killed.

    python -m benchmarks.kill_study [--kills 50] [--trials 24] [--seed 1] [--write]

The parent process is sent SIGKILL at a random moment after each start, and the same command is
started again at once; every few seconds a running trial is killed as well. Studies follow one
another until there were enough kills. Linux only (reads /proc).
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import optuna

from benchmarks.result_page import publish, table
from benchmarks.resumable import left_by, train_alone
from ppo_lab.config.compose import register

__all__ = ["Outcome", "count_identical", "kill_study", "processes_of"]

_MOST_S = 3600.0
_ORPHAN_S = 30.0
_RUN = (
    *("network=tiny", "total_steps=40960", "tracking=local", "num_threads=1", "device=cpu"),
    *("compile=never", "checkpoint.every_s=0.5", "tracking.terminal=none"),
)
_STUDY = (
    *("study=default", "epsilon=interval(0.05,0.5)", "study.name=killed", "study.num_workers=2"),
    *("study.max_retries=1000", "study/pruner=none", *_RUN),
)


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
    """Orphans: processes of a parent that still ran 30 s after its end."""
    longest_end_s: float = 0.0
    """Until the last process of a parent had ended, such as a fork server that still imported."""
    lost_results: list[int] = field(default_factory=list)
    """Finished trials without a result in their folder."""
    num_resumed: int = 0
    """Trials that went on from a checkpoint."""
    num_identical: int = 0
    """Finished trials that ended with the bits of an undisturbed run of the same config."""

    @property
    def is_exact(self) -> bool:
        """Whether each trial exists once, with its result, and nothing else exists."""
        return (
            self.numbers == list(range(self.num_trials))
            and sum(self.states.values()) == self.num_trials
            and not {"RUNNING", "WAITING"} & self.states.keys()
            and not (self.overwritten or self.left_behind or self.lost_results)
        )

    def count_orphans(self, ended_s: dict[int, float]) -> bool:
        """Look at the sessions that lost their leader; return whether one is not gone yet."""
        for session, end_s in list(ended_s.items()):
            left, waited_s = processes_of(session), time.monotonic() - end_s
            if left and waited_s < _ORPHAN_S:
                continue
            del ended_s[session]
            self.left_behind += left
            self.longest_end_s = max(self.longest_end_s, waited_s)
        return bool(ended_s)


def _begin(folder: Path, words: list[str], shown: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ppo_lab", *words]
    return subprocess.Popen(command, cwd=folder, stdout=shown, stderr=shown, start_new_session=True)


def kill_study(
    folder: Path,
    *,
    num_trials: int,
    num_parent_kills: int,
    parent_kill_s: tuple[float, float] = (0.0, 12.0),
    trial_kill_s: tuple[float, float] = (3.0, 9.0),
    seed: int = 1,
    overrides: tuple[str, ...] = (),
    begin: Callable[[Path, list[str], IO[bytes]], Started] = _begin,
) -> Outcome:
    """Run a study in ``folder`` while killing it.

    Its parent is killed within ``parent_kill_s`` of its start, trials with pauses within
    ``trial_kill_s``.
    """
    pick = random.Random(seed)
    words = [*_STUDY, f"study.num_trials={num_trials}", *overrides]
    study = folder / "outputs" / "studies" / "killed"
    outcome = Outcome(num_trials)
    ended_s: dict[int, float] = {}
    """When each session lost its leader, unless all of it is known to be gone."""
    hashes: dict[Path, str] = {}
    begin_s = time.monotonic()
    with (folder / "shown").open("ab") as shown:

        def start() -> tuple[Started, float]:
            process = begin(folder, words, shown)
            return process, time.monotonic() + pick.uniform(*parent_kill_s)

        process, parent_kill_at_s = start()
        trial_kill_at_s = time.monotonic() + pick.uniform(*trial_kill_s)
        while process.poll() is None and time.monotonic() - begin_s < _MOST_S:
            time.sleep(0.1)
            outcome.overwritten += _watch(study, hashes)
            outcome.count_orphans(ended_s)
            is_over = outcome.num_parent_kills == num_parent_kills
            if time.monotonic() > parent_kill_at_s and not is_over:
                os.kill(process.pid, signal.SIGKILL)  # its trials must notice
                process.wait()
                outcome.num_parent_kills += 1
                ended_s[process.pid] = time.monotonic()
                process, parent_kill_at_s = start()
            elif time.monotonic() > trial_kill_at_s:
                trial_kill_at_s = time.monotonic() + pick.uniform(*trial_kill_s)
                if trials := _trials_of(process.pid):
                    os.kill(pick.choice(trials), signal.SIGKILL)
                    outcome.num_trial_kills += 1
    outcome.wall_s = time.monotonic() - begin_s
    ended_s[process.pid] = time.monotonic()
    while outcome.count_orphans(ended_s):
        time.sleep(0.1)
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


def _watch(study: Path, hashes: dict[Path, str]) -> list[str]:
    """Store each new result, and return those that have changed."""
    changed = []
    for path in [*study.glob("trials/*/result.json"), *study.glob("trials/*/*/result.json")]:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if hashes.setdefault(path, digest) != digest:
            changed.append(str(path))
    return changed


def _trials_in(study: Path) -> list[tuple[optuna.trial.FrozenTrial, Path]]:
    """Return a study's trials, each with the result of its last attempt."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{study / 'study.db'}")
    trials = optuna.load_study(study_name="killed", storage=storage).trials
    return [(t, Path(t.user_attrs.get("folder", "none")) / "result.json") for t in trials]


def _read(study: Path, outcome: Outcome) -> None:
    trials = _trials_in(study)
    outcome.numbers = [trial.number for trial, _ in trials]
    outcome.states = dict(collections.Counter(trial.state.name for trial, _ in trials))
    outcome.lost_results = [trial.number for trial, path in trials if not path.is_file()]
    for _, path in trials:
        summaries = json.loads(path.read_text())["summaries"] if path.is_file() else []
        outcome.num_resumed += any("resumed" in summary for summary in summaries)
    for path in study.glob("trials/**/metrics.jsonl"):  # nothing runs any more
        outcome.num_attempts += 1
        if list(_iterations(path)) != sorted(set(_iterations(path))):
            outcome.overwritten.append(str(path))  # two runs wrote into one file


def _iterations(path: Path) -> Iterator[int]:
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield json.loads(line)["iteration"]


def count_identical(study: Path, folder: Path) -> int:
    """Return how many of a study's finished trials are, bit by bit, what an undisturbed run is.

    These runs are trained below ``folder``.
    """
    num_identical = 0
    for _, path in _trials_in(study):
        (summary,) = json.loads(path.read_text())["summaries"]
        alone = train_alone(summary["overrides"], folder / str(summary["trial"]))
        run = f"seed_{summary['seed']}"
        num_identical += left_by(path.parent / run) == alone._replace(run=run)
    return num_identical


def _page(outcomes: Sequence[Outcome], seed: int) -> list[str]:
    what = (
        f"Studies of `{' '.join(_STUDY)}`, whose parent process was sent SIGKILL at a moment drawn "
        "uniformly from the 12 seconds after each start and started again at once, and one of "
        "whose trials was killed every 3 to 9 seconds. An orphan is a process of a parent that "
        "is there 30 s after its end. Bit-identical: weights, moments of Adam, environments, the "
        "saved policy and every value of metrics.jsonl but times are those of a run of the same "
        "config that nobody disturbed."
    )
    header = ["study", "parent kills", "trial kills", "trials asked", "stored, once each",
              "results lost", "files written twice", "orphans", "s until all were gone",
              "went on from a checkpoint", "bit-identical", "minutes"]  # fmt: skip
    rows = [
        [f"seed {seed + number}", o.num_parent_kills, o.num_trial_kills, o.num_trials,
         len(set(o.numbers)) if o.numbers == list(range(o.num_trials)) else f"NOT: {o.numbers}",
         len(o.lost_results), len(o.overwritten), len(o.left_behind), f"{o.longest_end_s:.1f}",
         o.num_resumed, o.num_identical, f"{o.wall_s / 60:.1f}"]
        for number, o in enumerate(outcomes)
    ]  # fmt: skip
    return [what, table(header, rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="save the page in benchmarks/results")
    arguments = parser.parse_args()
    register()
    outcomes: list[Outcome] = []
    while (left := arguments.kills - sum(o.num_parent_kills for o in outcomes)) > 0:
        seed = arguments.seed + len(outcomes)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            outcome = kill_study(
                folder, num_trials=arguments.trials, num_parent_kills=left, seed=seed
            )
            study = folder / "outputs" / "studies" / "killed"
            outcome.num_identical = count_identical(study, folder / "undisturbed")
            outcomes.append(outcome)
            print(json.dumps(vars(outcome)), file=sys.stderr, flush=True)
            if not outcome.is_exact:
                print(f"NOT EXACT\n{(folder / 'shown').read_text()}", file=sys.stderr)
    parts = _page(outcomes, arguments.seed)
    publish("kill_study", "Studies whose parent is killed", parts, write=arguments.write)
    is_exact = all(o.is_exact and o.num_identical == o.num_trials for o in outcomes)
    sys.exit(0 if is_exact else 1)


if __name__ == "__main__":
    main()
