"""What the jobs of a grid came to, read from their folders: whichever launcher ran them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ppo_lab.tracking import read_summary

__all__ = ["GridFolder", "grid_summaries"]


class GridFolder(Callback):
    """Remembers where Hydra put the grid; named in conf/config.yaml."""

    path: ClassVar[Path | None] = None
    """The folder of this process's grid, once it has begun."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Take the folder from Hydra's own config; a study has one of its own."""
        if config.study is not None:
            return
        GridFolder.path = Path(config.hydra.sweep.dir)
        # A launcher's job composes its config anew, in a process or on a machine of its own, and
        # would find an unused folder of its own there. Its overrides are what it is given.
        quoted = str(GridFolder.path).replace("\\", r"\\").replace("'", r"\'")
        with read_write(config), open_dict(config):
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")


def grid_summaries(folder: Path) -> list[dict[str, Any]]:
    """Return each job's summary in order of its number; status ``lost`` where there is none.

    A job that was killed, or whose machine was, has a folder with its config but no summary.
    """
    jobs = [path.parent for path in folder.rglob(".hydra") if path.is_dir()]
    return [_summary(job) for job in sorted(jobs, key=_number_of)]


def _number_of(job: Path) -> tuple[int, str]:
    """Return the job's number in its grid, from what Hydra wrote beside its config."""
    saved = job / ".hydra" / "hydra.yaml"
    number = OmegaConf.select(OmegaConf.load(saved), "hydra.job.num") if saved.is_file() else None
    return (number if isinstance(number, int) else sys.maxsize, str(job))


def _summary(job: Path) -> dict[str, Any]:
    if (job / "summary.json").is_file():
        return read_summary(job / "summary.json")
    overrides = job / ".hydra" / "overrides.yaml"
    return {
        "status": "lost",
        "reason": "ended without a summary",
        "overrides": list(OmegaConf.load(overrides)) if overrides.is_file() else [],
        "folder": str(job),
    }
