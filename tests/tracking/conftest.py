"""Runs W&B in processes of their own, since what it knows is known per process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).resolve().parent
PROGRAM = _HERE / "wandb_program.py"
# Not a key: it has a key's length and letters, and is looked for in every file written.
CANARY_KEY = "c0ffee" + "0123456789abcdef" * 2 + "ab"


@dataclass
class Outcome:
    """What ``wandb_program.py`` printed, and how long all of it took."""

    runs: list[dict[str, Any]]
    wall_s: float
    stderr: str


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """Return this process's environment without W&B's variables and without a netrc."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    home.mkdir(exist_ok=True)
    path = os.pathsep.join([str(_HERE.parents[1]), *filter(None, [kept.get("PYTHONPATH")])])
    return kept | {"HOME": str(home), "NETRC": str(home / "netrc"), "PYTHONPATH": path} | more


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., Outcome]:
    """Run the program in a fresh process: ``run_program(outputs, rounds, lanes, VARIABLE=...)``."""

    def run(outputs: Path, num_rounds: int, num_lanes: int, *extra: str, **more: str) -> Outcome:
        command = [sys.executable, str(PROGRAM), str(outputs), str(num_rounds), str(num_lanes)]
        begin = time.perf_counter()
        done = subprocess.run(
            [*command, *extra],
            env=clean_environment(tmp_path / "home", **more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        runs = [json.loads(line) for line in done.stdout.splitlines()]
        return Outcome(runs, time.perf_counter() - begin, done.stderr)

    return run


@pytest.fixture
def inspect() -> Callable[[Path], list[dict[str, Any]]]:
    """Read a local W&B run back through W&B's own reader, as its list of records."""

    def read(folder: Path) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    return read
