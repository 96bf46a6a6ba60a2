"""Markdown pages of results: tables, command, machine and versions."""

from __future__ import annotations

import datetime
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from ppo_lab.utils.provenance import git_state, versions

__all__ = ["RESULTS_DIR", "Deadline", "publish", "table"]

RESULTS_DIR = Path(__file__).resolve().parent / "results"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; the first column is text, the others numbers."""
    align = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [header, align, *rows])


@dataclass(frozen=True)
class Deadline:
    """A time limit after which no further run is started."""

    limit_s: float
    begin_s: float = field(default_factory=time.perf_counter)

    @property
    def has_passed(self) -> bool:
        """Whether the time limit has passed."""
        return time.perf_counter() - self.begin_s > self.limit_s


def publish(name: str, title: str, parts: Iterable[str], *, write: bool) -> None:
    """Print a page of ``parts`` with command, machine and versions; ``write`` saves it.

    Each part is printed and saved as it comes, so that what stops the program loses no other.
    """
    done = [f"# {title}"]
    print(done[0])
    for part in parts:
        done.append(part)
        print(f"\n{part}", flush=True)
        if write:
            RESULTS_DIR.mkdir(exist_ok=True)
            page = "\n\n".join([*done, _circumstances()]) + "\n"
            (RESULTS_DIR / f"{name}.md").write_text(page)
    print(f"\n{_circumstances()}\n")


def _circumstances() -> str:
    """Return date, command, commit, machine and versions as a list."""
    program = sys.modules["__main__"].__spec__
    assert program is not None  # started with -m
    module = program.name.removesuffix(".__main__")
    git = git_state()
    commit = git.get("commit", "none")[:10] + (
        " and uncommitted changes" if git.get("dirty") else ""
    )
    packages = versions()
    for package in ("stable-baselines3", "mujoco"):
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    now = datetime.datetime.now(datetime.UTC)
    load = ", ".join(f"{minutes:.1f}" for minutes in os.getloadavg())
    return "\n".join(
        [
            f"- command: `{shlex.join(['python', '-m', module, *sys.argv[1:]])}`",
            f"- date: {now:%Y-%m-%d %H:%M} UTC, commit {commit}",
            f"- machine: {_cpu_model()}, {os.cpu_count()} cores; "
            f"load over the last 1, 5 and 15 minutes, this program included: {load}",
            "- versions: " + ", ".join(f"{key} {value}" for key, value in packages.items()),
        ]
    )


def _cpu_model() -> str:
    """Return the processor's name and model number, since names can be vague."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    number = f"family {facts.get('cpu family')}, model {facts.get('model')}"
    return f"{facts.get('model name', 'unknown')} ({number})"
