"""Fixtures that run W&B in separate processes, since its state is per process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.commands import ppo_lab
from tests.helpers.wandb_processes import PROGRAM, Outcome, clean_environment


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[..., Outcome]:
    """Run the program in a fork: ``run_program(outputs, rounds, lanes, VARIABLE=...)``."""

    def run(outputs: Path, num_rounds: int, num_lanes: int, *extra: str, **more: str) -> Outcome:
        begin = time.perf_counter()
        environment = {name: None for name in os.environ if name.startswith("WANDB_")}
        environment |= clean_environment(tmp_path / "home", **more)
        words = [str(outputs), str(num_rounds), str(num_lanes), *extra]
        done = ppo_lab(tmp_path, *words, program=PROGRAM.read_text(), **environment)
        assert done.returncode == 0, done.stderr
        runs = [json.loads(line) for line in done.stdout.splitlines()]
        return Outcome(runs, time.perf_counter() - begin, done.stderr)

    return run
