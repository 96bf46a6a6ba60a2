"""``python -m ppo_lab.browse outputs/...``: W&B's own terminal page for the runs on this disk."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["find_runs_folder", "main"]


def find_runs_folder(start: Path) -> Path | None:
    """Return the folder that directly contains W&B runs: ``start``, its ``wandb``, or a parent's.

    ``wandb leet`` does not search below the folder it is given. Every run of this project lies in
    ``outputs/wandb``, so that any folder under ``outputs`` leads there.
    """
    start = start.resolve()
    candidates = [start, *(folder / "wandb" for folder in (start, *start.parents))]
    return next((folder for folder in candidates if _contains_runs(folder)), None)


def main(arguments: Sequence[str] | None = None) -> int:  # noqa: RET503 - exec ends it
    """Replace this process by ``wandb leet``; return 2 when there is nothing to browse."""
    parser = argparse.ArgumentParser(prog="python -m ppo_lab.browse", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs"))
    folder = parser.parse_args(arguments).folder
    runs = find_runs_folder(folder)
    if runs is None:
        sys.stderr.write(f"no W&B runs at or above {folder}; train one: python -m ppo_lab\n")
        return 2
    command = [sys.executable, "-m", "wandb", "leet", str(runs)]
    os.execv(command[0], command)


def _contains_runs(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in ("offline-run-*", "run-*"))


if __name__ == "__main__":
    sys.exit(main())
