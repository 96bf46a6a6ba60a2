"""Helpers to run W&B in separate processes, since its state is per process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
