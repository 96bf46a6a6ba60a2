"""``resume=`` and ``fork=``: the command of a stored run or grid, and what of it is left to do."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppo_lab.config.compose import Job
from ppo_lab.config.composer import parse
from ppo_lab.config.foreign import read_plain
from ppo_lab.config.hydra_part import is_of_file
from ppo_lab.config.run import Config
from ppo_lab.runner.resume import check_resume
from ppo_lab.runner.stored import stored_summary
from ppo_lab.training.checkpoint import load_checkpoint
from ppo_lab.utils.errors import ConfigError

__all__ = ["Stored", "split_stored", "unfinished_jobs"]

_LOG = logging.getLogger(__name__)
_KEYS = ("resume", "fork")
_PLACES = ("outputs/runs/*/.hydra/hydra.yaml", "outputs/grids/*/multirun.yaml")
_DONE = ("finished", "pruned", "diverged")  # again, they would end in the same way


@dataclass(frozen=True)
class Stored:
    """A run or grid that a command goes on with."""

    key: str
    """``resume`` or ``fork``."""
    folder: Path
    is_grid: bool
    group: str | None
    """The grid that a run belongs to."""
    overrides: tuple[str, ...]
    config_dir: str | None
    config_name: str | None

    def check(self, config: Config) -> None:
        """Raise ``ConfigError`` unless the run can go on with ``config``, or be forked."""
        if self.key == "fork":
            if load_checkpoint(self.folder) is None:
                raise ConfigError("fork", self.folder, "holds no checkpoint that can be read")
            return
        check_resume(self.folder, config)
        summary = stored_summary(self.folder)
        is_whole = int(summary.get("env_steps") or 0) >= config.num_counted_steps
        if summary.get("status") in _DONE and is_whole:
            allowed = f"the run has {summary['status']}; a larger total_steps= goes on with it"
            raise ConfigError("resume", self.folder, allowed)


def split_stored(overrides: Sequence[str]) -> tuple[Stored | None, list[str]]:
    """Return what ``resume=`` or ``fork=`` names, and the whole command's overrides.

    They are those of the stored command, then those that were typed.

    Raises:
        ConfigError: there is no such run or grid.
    """
    named = [text for text in overrides if text.partition("=")[0] in _KEYS]
    typed = [text for text in overrides if text not in named]
    if not named:
        return None, typed
    key, _, value = named[-1].partition("=")
    if len(named) > 1:
        raise ConfigError(key, value, "name one run or grid, to resume or to fork")
    folder = _newest(key) if value == "last" else Path(value)
    stored = _read(key, folder)
    given = {parse(text).key_or_group for text in typed}
    kept = [text for text in stored.overrides if parse(text).key_or_group not in given]
    return stored, [*kept, *typed]


def _newest(key: str) -> Path:
    files = [path for place in _PLACES for path in Path().glob(place)]
    if not files:
        raise ConfigError(key, "last", "there is no run or grid in outputs")
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    return newest.parent if newest.name == "multirun.yaml" else newest.parents[1]


def _read(key: str, folder: Path) -> Stored:
    is_grid = (folder / "multirun.yaml").is_file()
    file = folder / ("multirun.yaml" if is_grid else ".hydra/hydra.yaml")
    if not file.is_file() or (is_grid and key == "fork"):
        what = "run" if key == "fork" else "run or grid"
        raise ConfigError(key, folder, f"must be the folder of a {what}, or last")
    hydra: dict[str, Any] = read_plain(file).get("hydra") or {}
    try:
        task, of_hydra = (list(map(str, hydra["overrides"][name])) for name in ("task", "hydra"))
        sources = [s["path"] for s in hydra["runtime"]["config_sources"] if _is_own(s)]
        if of_files := [text for text in task if parse(text).is_hydra_override()]:
            allowed = f"{file.name} sets {of_files[0]}, which no run of this lab leaves there"
            raise ConfigError(key, folder, allowed)
        is_job = not is_grid and hydra["mode"] == "MULTIRUN"
        return Stored(
            key=key,
            folder=folder,
            is_grid=is_grid,
            group=Path(hydra["sweep"]["dir"]).name if is_job else None,
            overrides=(*task, *(_still_valid(of_hydra) if is_grid else ())),
            config_dir=sources[0] if sources else None,
            config_name=hydra["job"]["config_name"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(key, folder, f"{file.name} is not what a run leaves: {error}") from None


def _is_own(source: dict[str, Any]) -> bool:
    return source["provider"] == "command-line"


def _still_valid(overrides: Sequence[str]) -> Iterator[str]:
    """Yield what the stored command said of Hydra itself, less folders and what may run code."""
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        if key == "hydra/launcher" or is_of_file(key.removeprefix("hydra.")):
            if key not in ("hydra.sweep.dir", "hydra.run.dir", "hydra.searchpath"):
                yield text
        else:
            _LOG.warning("%s is not taken over from the stored command; type it again", text)


def unfinished_jobs(folder: Path, jobs: Sequence[Job]) -> list[tuple[int, Job]]:
    """Return the jobs of a grid in ``folder`` that have no final result, with their numbers.

    Raises:
        ConfigError: a job there is another one.
    """
    left = []
    for number, job in enumerate(jobs):
        run = folder / job.subdir
        summary = stored_summary(run)
        before = summary.get("overrides") or list(job.overrides)
        if before != list(job.overrides):
            allowed = f"job {number} is {' '.join(before)} there, and {' '.join(job.overrides)} now"
            raise ConfigError("resume", folder, allowed)
        if summary.get("status") in _DONE:
            continue
        if load_checkpoint(run) is not None:
            check_resume(run, job.config)
        left.append((number, job))
    return left
