"""Browse local W&B runs in W&B's terminal interface: ``python -m ppo_lab.browse outputs/...``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["find_runs_folder", "main"]


def find_runs_folder(start: Path) -> Path | None:
    """Return the folder that directly contains W&B runs: ``start``, its ``wandb``, or a parent's.

    ``wandb leet`` does not search subfolders. All runs of this project are in ``outputs/wandb``, so
    any folder below ``outputs`` leads there.

    Args:
        start: Where to begin, such as a run's folder.

    Returns:
        The folder, or None if there are no W&B runs.
    """
    start = start.resolve()
    candidates = [start, *(folder / "wandb" for folder in (start, *start.parents))]
    return next((folder for folder in candidates if _contains_runs(folder)), None)


def main(arguments: Sequence[str] | None = None) -> int:  # noqa: RET503 - exec ends it
    """Replace this process by ``wandb leet``; return 2 if there are no runs."""
    parser = argparse.ArgumentParser(prog="python -m ppo_lab.browse", description=__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("outputs"), help="default outputs"
    )
    folder = parser.parse_args(arguments).folder
    runs = find_runs_folder(folder)
    if runs is None:
        sys.stderr.write(f"no W&B runs in or above {folder}; start one with python -m ppo_lab\n")
        return 2
    command = [sys.executable, "-m", "wandb", "leet", str(runs)]
    os.execv(command[0], command)


def _contains_runs(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in ("offline-run-*", "run-*"))


if __name__ == "__main__":
    sys.exit(main())
