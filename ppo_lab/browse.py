"""Browse local W&B runs in W&B's terminal interface: python -m ppo_lab.browse outputs/..."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ppo_lab.utils.redaction import printable

__all__ = ["find_runs_folder", "main"]


def find_runs_folder(start: Path) -> Path | None:
    """Return the folder that contains W&B runs: ``start``, its ``wandb``, a parent's, or None.

    ``wandb leet`` does not search subfolders. All runs of this project are in ``outputs/wandb``, so
    any folder below ``outputs`` leads there, or below WANDB_DIR, which is tried last.
    """
    start = start.absolute()
    elsewhere = [Path(path) for path in [os.environ.get("WANDB_DIR")] if path]
    for folder in (start, *(path / "wandb" for path in (start, *start.parents, *elsewhere))):
        if any(folder.glob("offline-run-*")) or any(folder.glob("run-*")):
            return folder
    return None


def main(arguments: Sequence[str] | None = None) -> int:  # noqa: RET503 - exec ends it
    """Replace this process by ``wandb leet``; return 2 if there are no runs."""
    parser = argparse.ArgumentParser(prog="python -m ppo_lab.browse", description=__doc__)
    parser.add_argument("folder", nargs="?", default="outputs", help="default outputs")
    folder = Path(parser.parse_args(arguments).folder)
    runs = find_runs_folder(folder)
    if runs is None:
        hint = "start one with python -m ppo_lab"
        sys.stderr.write(f"ppo_lab.browse: no W&B runs in or above {printable(folder)}; {hint}\n")
        return 2
    command = [sys.executable, "-m", "wandb", "leet", str(runs)]
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
