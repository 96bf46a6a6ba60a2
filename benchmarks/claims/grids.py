"""The grids of ``sweeps/claims``: run, or gone on with, and read."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.runs import SeedRun, find_runs
from ppo_lab.studies.results.statistics import half_width
from ppo_lab.utils.paths import SWEEPS_DIR

__all__ = ["OUTPUTS", "interval", "setting_values", "trained"]

OUTPUTS = SWEEPS_DIR.parent / "outputs" / "claims"


def trained(name: str) -> list[SeedRun]:
    """Return the runs of ``sweep=claims/name``; train what is missing of them first.

    Raises:
        RuntimeError: a run has not ended as it should.
    """
    folder = OUTPUTS / name
    is_begun = (folder / "multirun.yaml").is_file()
    what = [f"resume={folder}"] if is_begun else [f"sweep=claims/{name}", "tracking=local"]
    what += [] if is_begun else [f"hydra.sweep.dir={folder}", "-m"]
    command = [sys.executable, "-m", "ppo_lab", *what]
    status = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    if status not in (0, 1):  # 1: a run diverged
        raise RuntimeError(f"{' '.join(command)} failed")
    runs = find_runs([folder])
    if bad := {run.summary["status"] for run in runs} - {"finished", "diverged"}:
        raise RuntimeError(f"{folder}: runs that are {', '.join(bad)}")
    return runs


def setting_values(run: SeedRun) -> dict[str, str]:
    """Return the values of the keys that vary, by key."""
    return dict(pair.split("=", 1) for pair in run.setting.split())


def interval(values: list[float], decimals: int = 0) -> str:
    """Return the mean with its 95 % interval."""
    mean = sum(values) / len(values)
    half = half_width(values)
    return f"{mean:.{decimals}f}" + ("" if half is None else f" ± {half:.{decimals}f}")
