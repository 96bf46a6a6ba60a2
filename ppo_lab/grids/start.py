"""Start a checked command as Hydra does, in folders that are locked before Hydra writes there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log, run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from ppo_lab.config.compose import Job, make_folder
from ppo_lab.runner.lock import lock_run_folder
from ppo_lab.tracking.local import METRICS_FILE, SUMMARY_FILE
from ppo_lab.utils.errors import ConfigError

__all__ = ["Jobs", "command_folder", "start_multirun", "start_run"]

_OF_RUN = (METRICS_FILE, SUMMARY_FILE, "checkpoints")
Task = Callable[[DictConfig], Any]


class Jobs(list[tuple[int, tuple[str, ...]]]):
    """Numbers and overrides of the jobs of a grid that are to be run."""

    def batches(self, most: int | None) -> list[tuple[int, list[list[str]]]]:
        """Return runs of consecutive jobs of at most ``most``, each with its first number."""
        batches: list[tuple[int, list[list[str]]]] = []
        for number, overrides in self:
            first, batch = batches[-1] if batches else (number, [])
            if not batches or first + len(batch) != number or len(batch) == most:
                batches.append((number, batch := []))
            batch.append(list(overrides))
        return batches


def start_run(hydra: Hydra, config: DictConfig, task: Task) -> Any:  # noqa: ANN401
    """Run the single job of a command, in a folder that is locked; return what it returns."""
    config.hydra.mode = RunMode.RUN
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    callbacks = Callbacks(config)
    name = config.hydra.job.config_name
    callbacks.on_run_start(config=config, config_name=name)
    ended = run_job(
        hydra_context=HydraContext(hydra.config_loader, callbacks),
        task_function=task,
        config=config,
        job_dir_key="hydra.run.dir",
        job_subdir_key=None,
    )
    callbacks.on_run_end(config=config, config_name=name, job_return=ended)
    return ended.return_value  # raises what the job raised


def start_multirun(
    hydra: Hydra, config: DictConfig, task: Task, jobs: Sequence[tuple[int, Job]] = ()
) -> None:
    """Run the ``jobs`` of a grid, each with its number, or the command's study."""
    config.hydra.mode = RunMode.MULTIRUN
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    callbacks = Callbacks(config)
    name = config.hydra.job.config_name
    callbacks.on_multirun_start(config=config, config_name=name)
    sweeper = Plugins.instance().instantiate_sweeper(
        config=config,
        hydra_context=HydraContext(hydra.config_loader, callbacks),
        task_function=task,
    )
    arguments = Jobs((number, job.overrides) for number, job in jobs)
    sweeper.sweep(arguments)  # type: ignore[arg-type]
    callbacks.on_multirun_end(config=config, config_name=name)


@contextmanager
def command_folder(
    config: DictConfig, key: str, stored: Path | None, subdirs: Sequence[str] = ("",)
) -> Iterator[Path]:
    """Lock the command's folder ``key`` inside: ``stored``, or a new one, which is made.

    Raises:
        ConfigError: a run is in a new one, in one of its ``subdirs``, or another process has it.
    """
    if stored is not None:
        OmegaConf.update(config, key, str(stored).replace("${", r"\${"))
    folder, is_new = make_folder(config, key), stored is None
    if is_new:
        _refuse_used(key, folder, subdirs)  # nothing is written there if it is
    with lock_run_folder(folder):
        if is_new:
            _refuse_used(key, folder, subdirs)  # by another command meanwhile
        yield folder


def _refuse_used(key: str, folder: Path, subdirs: Sequence[str]) -> None:
    for subdir in subdirs:
        if any((folder / subdir / name).exists() for name in _OF_RUN):
            allowed = f"holds a run already; choose another folder, or resume={folder}"
            raise ConfigError(key, folder / subdir, allowed)
