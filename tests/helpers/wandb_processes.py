"""Helpers to run W&B in separate processes, since its state is per process."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb.util

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


def records_of(folder: Path) -> list[dict[str, Any]]:
    """Read a local W&B run back through W&B's own reader, as its list of records."""
    (log,) = folder.glob("*.wandb")  # without the seconds that `python -m wandb` imports
    core = [wandb.util.get_core_path(), "leet", "inspect", "--json", "--no-observability"]
    done = subprocess.run(
        [*core, "--run-file", str(log), str(folder.parent)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]
