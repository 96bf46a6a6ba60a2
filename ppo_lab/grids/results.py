"""Results of a grid, read from its jobs' folders; the same for every launcher."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ppo_lab.tracking import read_summary

__all__ = ["GridFolder", "grid_summaries"]


class GridFolder(Callback):
    """Hydra callback that records the grid's folder; registered in conf/config.yaml."""

    path: ClassVar[Path | None] = None
    """The folder of this process's grid, once it has started."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Record the folder from Hydra's config, unless the command is a study."""
        if config.study is not None:
            return
        GridFolder.path = Path(config.hydra.sweep.dir)
        # A job may compose its config again in another process or on another machine, where the
        # resolver would return another unused folder. Only overrides are passed on to it.
        quoted = str(GridFolder.path).replace("\\", r"\\").replace("'", r"\'")
        with read_write(config), open_dict(config):
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")


def grid_summaries(folder: Path) -> list[dict[str, Any]]:
    """Return the summaries of a grid's jobs in order of their numbers.

    A job that was killed, or whose machine failed, has a folder with its config but no summary;
    its status is ``lost``.
    """
    jobs = [path.parent for path in folder.rglob(".hydra") if path.is_dir()]
    return [_summary(job) for job in sorted(jobs, key=_number_of)]


def _number_of(job: Path) -> tuple[int, str]:
    """Return a sort key: the job's number in ``.hydra/hydra.yaml``, then its folder."""
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
