"""The command ``python -m ppo_lab``: check all jobs, run them, show their results."""

from __future__ import annotations

import functools
import logging
import os
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from ppo_lab.config.choices import ForecastFormat
from ppo_lab.config.compose import (
    Command,
    Job,
    check_command,
    check_config_dir,
    compose_command,
    load,
    register,
)
from ppo_lab.config.composer import open_hydra
from ppo_lab.config.error_messages import explain
from ppo_lab.config.other_names import check_flags
from ppo_lab.config.run import Config
from ppo_lab.forecasting.budget import over_budget, resolve_memory
from ppo_lab.forecasting.fit import fit
from ppo_lab.forecasting.tables import forecast_json, forecast_table, forecasts_table
from ppo_lab.grids.progress import GridProgress
from ppo_lab.grids.resume import Stored, split_stored, unfinished_jobs
from ppo_lab.grids.screen import print_lines, show_grid, show_run
from ppo_lab.grids.start import command_folder, start_multirun, start_run
from ppo_lab.runner.exit_status import EXIT_FAILED, EXIT_REFUSED, exit_status, interrupt_status
from ppo_lab.runner.group import RunGroup
from ppo_lab.runner.resume import fork_run
from ppo_lab.runner.run import RunOutput, Status, run_group
from ppo_lab.runner.signals import Interrupted
from ppo_lab.runner.stored import stored_summary
from ppo_lab.tracking import TrackingMode
from ppo_lab.tracking.tables import overridden_keys
from ppo_lab.tracking.wandb_sweep import agent_overrides, agent_parameters
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.paths import CONF_DIR
from ppo_lab.utils.redaction import mask_output

__all__ = ["main"]

_CHECKED_EVERY = 250  # jobs: some seconds


def job(
    cfg: DictConfig,
    *,
    group: str | None = None,
    varying: Collection[str] | None = None,
    notes: Mapping[str, Any] | None = None,
    grid: GridProgress | None = None,
) -> dict[str, Any]:
    """Run one job in the folder that Hydra made for it, or go on with it; return its summary.

    A failed run is a status, not an exception: Hydra would report only the first one of a grid.
    ``group`` is the grid of a run that is resumed alone, ``varying`` the keys that a grid varies;
    ``notes`` are added to the summary. ``grid`` shows the job's progress.
    """
    hydra_config = HydraConfig.get()
    if hydra_config.mode is RunMode.MULTIRUN:
        group = Path(hydra_config.sweep.dir).name
    folder, overrides = Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task)
    output = RunOutput(folder, overrides, group, varying, notes=notes or {}, resumes=True)
    config = load(cfg)
    if grid is None:
        (summary,) = run_group(RunGroup([config], [output]))
        return summary
    shown = grid.alone(hydra_config.job.num, config.total_steps)
    (summary,) = run_group(RunGroup([config], [output]), shown)
    grid.end_alone(hydra_config.job.num, summary)
    return summary


def main() -> None:
    """Check all jobs of the command line, then run them and show the results, or forecast them.

    Exit status: see ``runner.exit_status``; of a grid 0 if every job finished, else 1.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    mask_output()
    register()
    arguments, unknown = get_args_parser().parse_known_intermixed_args()
    with _explained(()):
        check_flags(unknown, sys.argv[1:])
    shows_only = ("help", "hydra_help", "info", "cfg", "shell_completion")
    if any(getattr(arguments, name) for name in shows_only):
        _check_shown(arguments)
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")(job)()
        return
    try:
        with _open_hydra(arguments) as (opened, stored):
            command = _check(opened, arguments, stored)
            if command.config.fit:
                _show_fits(arguments, command.jobs)
            else:
                _run(opened, command, stored)
    except KeyboardInterrupt as error:
        sys.exit(interrupt_status(error))


def _check_shown(arguments: Namespace) -> None:
    """Check a command that only shows something: Hydra logs as its config says even then."""
    with _open_hydra(arguments) as (opened, _), _explained(arguments.overrides):
        if arguments.config_dir is not None and not arguments.shell_completion:
            compose_command(opened, arguments.overrides, arguments.config_name)


def _run(opened: Hydra, command: Command, stored: Stored | None) -> None:
    """Forecast, or train."""
    jobs = command.jobs
    if any(job.config.forecast for job in jobs):
        _show_forecasts([(job, resolve_memory(job.config)) for job in jobs])
        return
    _check_budgets([resolve_memory(job.config) for job in jobs])
    if not jobs:
        start_multirun(opened, command.config, job)
    elif command.is_multirun:
        _run_grid(opened, command, stored)
    else:
        _run_alone(opened, command, stored)


def _run_alone(opened: Hydra, command: Command, stored: Stored | None) -> None:
    (checked,), config, task, resumed = command.jobs, command.config, job, None
    if stored is not None and stored.key == "resume":
        task, resumed = functools.partial(job, group=stored.group), stored.folder
    with (
        _explained(config.hydra.overrides.task),
        command_folder(config, "hydra.run.dir", resumed) as folder,
    ):
        if stored is not None and resumed is None:
            fork_run(stored.folder, folder, checked.config)
            task = functools.partial(job, notes={"forked_from": str(stored.folder)})
        try:
            summary = start_run(opened, config, task)
        except KeyboardInterrupt:
            show_run(folder, stored_summary(folder))
            raise
    show_run(folder, summary)  # its file may not be there: the disk was full
    sys.exit(exit_status(summary))


def _run_grid(opened: Hydra, command: Command, stored: Stored | None) -> None:
    jobs, config, left, resumed = command.jobs, command.config, list(enumerate(command.jobs)), None
    with ExitStack() as stack:
        stack.enter_context(_explained(config.hydra.overrides.task))
        if stored is not None:  # before the folder is touched
            left, resumed = unfinished_jobs(stored.folder, jobs), stored.folder
        subdirs = [job.subdir for job in jobs]
        folder = stack.enter_context(command_folder(config, "hydra.sweep.dir", resumed, subdirs))
        try:
            if left:
                varying = overridden_keys([job.overrides for job in jobs])
                task = functools.partial(job, varying=varying)
                _train_grid(opened, config, task, left, folder.name)
        finally:
            summaries = show_grid(folder, jobs)
        if config.report:
            from ppo_lab.reports.report import report_place

            print_lines(f"page    {report_place(folder)}")
    if any(summary["status"] != Status.finished.value for summary in summaries):
        sys.exit(EXIT_FAILED)


def _train_grid(
    opened: Hydra,
    config: DictConfig,
    task: Callable[..., dict[str, Any]],
    left: Sequence[tuple[int, Job]],
    name: str,
) -> None:
    """Run the jobs that are ``left``; those of this process share one display."""
    if config.hydra.runtime.choices["hydra/launcher"] != "basic":
        start_multirun(opened, config, task, left)
        return
    named = {number: each.overrides for number, each in left}
    with GridProgress(name, named, left[0][1].config.tracking.terminal) as grid:
        start_multirun(opened, config, functools.partial(task, grid=grid), left)


@contextmanager
def _open_hydra(arguments: Namespace) -> Iterator[tuple[Hydra, Stored | None]]:
    """Yield Hydra, and what ``resume=`` or ``fork=`` names; its command becomes the arguments'."""
    with ExitStack() as stack:
        with _explained(arguments.overrides):
            if arguments.config_path is not None:
                allowed = "replaces the project's own config; add yours with --config-dir"
                raise ConfigError("--config-path", arguments.config_path, allowed)
            if arguments.experimental_rerun is not None:
                allowed = "a pickle can execute anything; use resume=FOLDER"
                raise ConfigError("--experimental-rerun", arguments.experimental_rerun, allowed)
            stored, arguments.overrides = split_stored(arguments.overrides)
            arguments.overrides += agent_overrides(arguments.overrides)
            if stored is not None:
                arguments.config_dir = arguments.config_dir or stored.config_dir
                arguments.config_name = arguments.config_name or stored.config_name
                arguments.multirun = arguments.multirun or stored.is_grid
            opened = stack.enter_context(open_hydra(check_config_dir(arguments.config_dir)))
        yield opened, stored


@contextmanager
def _explained(overrides: Sequence[str]) -> Iterator[None]:
    """Exit with a message for an error that is about the command line."""
    try:
        yield
    except Exception as error:
        message = explain(error, overrides)
        if message is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        _refuse(message)


def _check(opened: Hydra, arguments: Namespace, stored: Stored | None) -> Command:
    """Return the checked command of Hydra's ``arguments``; exit with a message if it cannot run."""
    with _explained(arguments.overrides):
        outputs = Path("outputs")
        if outputs.exists() and not (outputs.is_dir() and os.access(outputs, os.W_OK)):
            allowed = "must be a folder that can be written to; runs are saved there"
            raise ConfigError("outputs", outputs.resolve(), allowed)
        command = check_command(
            opened,
            arguments.overrides,
            is_multirun=arguments.multirun,
            config_name=arguments.config_name,
            check_study=_check_study,
            progress=_show_checked,
        )
        if command.is_multirun and (parameters := agent_parameters()):
            allowed = "an agent of a W&B sweep starts one run at a time, no grid and no study"
            raise ConfigError("wandb agent", ", ".join(parameters), allowed)
        if stored is not None and not command.is_multirun:
            stored.check(command.jobs[0].config)
        return command


def _show_checked(num_checked: int, num_jobs: int) -> None:
    """Tell how many jobs of a large grid have been checked."""
    if num_checked % _CHECKED_EVERY == 0:
        line = f"checked {num_checked:,} of {num_jobs:,} jobs"
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - the command's output


def _check_study(command: DictConfig, loader: ConfigLoader) -> None:
    from ppo_lab.utils.forkserver import start_server

    # Its imports overlap with ours. Already started if the command line alone showed a study.
    start_server(is_tracked=command.tracking.mode is not TrackingMode.disabled)

    from ppo_lab.studies.command import check_study  # imports Optuna

    check_study(command, loader)


def _check_budgets(configs: Sequence[Config]) -> None:
    """Exit with status 2 and advice if no job fits its memory budget; else those that fit run."""
    excess = over_budget(configs[0]) if configs else None
    if excess is None or any(over_budget(config) is None for config in configs[1:]):
        return
    message = excess.message()
    if len(configs) > 1:
        message += f"\nthe first of {len(configs)} jobs; none of the others fits either"
    _refuse(message)


def _show_forecasts(jobs: Sequence[tuple[Job, Config]]) -> None:
    """Print the forecasts of the jobs. Creates nothing."""
    first, config = jobs[0]
    if config.forecast_format is ForecastFormat.json:
        print(forecast_json(jobs))  # noqa: T201 - the command's output
    else:
        shown = forecasts_table(jobs) if first.is_multirun else forecast_table(config)
        Console().print(shown, crop=False)


def _show_fits(arguments: Namespace, jobs: Sequence[Job]) -> None:
    """Print the largest run like each job that fits: its forecast and its command."""
    with _explained(arguments.overrides):
        if not jobs or any(text.startswith("sweep=") for text in arguments.overrides):
            allowed = "is for runs, and grids of values typed with -m; not for sweep= or a study"
            raise ConfigError("fit", "true", allowed)
        fits = [fit(job.config) for job in jobs]
    fitted = [
        (job._replace(overrides=found.overrides(job.overrides, job.config)), found.config)
        for job, found in zip(jobs, fits)
    ]
    _show_forecasts(fitted)
    if jobs[0].config.forecast_format is ForecastFormat.json:
        return
    options = {"--config-dir": arguments.config_dir, "--config-name": arguments.config_name}
    words = [word for option in options.items() if option[1] for word in option]
    for (job, _), found in zip(fitted, fits):
        command = shlex.join(["python", "-m", "ppo_lab", *words, *job.overrides])
        print_lines(f"\n{found}\n{command}")


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)  # noqa: T201 - the command's output
    sys.exit(EXIT_REFUSED)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    signal.signal(number, signal.SIG_IGN)  # timeout(1) sends it twice
    logging.getLogger(__name__).warning("SIGTERM: closing the run")
    raise Interrupted(number)
