"""The command ``python -m ppo_lab``: check all jobs, run them, show their results."""

from __future__ import annotations

import logging
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from ppo_lab.config.choices import ForecastFormat
from ppo_lab.config.compose import Job, check_jobs, load, register
from ppo_lab.config.error_messages import explain
from ppo_lab.config.run import Config
from ppo_lab.forecast.budget import over_budget, resolve_memory
from ppo_lab.forecast.tables import forecast_json, forecast_table, forecasts_table
from ppo_lab.grids.results import GridFolder, grid_summaries
from ppo_lab.runner.run import Status, run_in_folder
from ppo_lab.tracking import TrackingMode, grid_table, places, reasons, summary_panel
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.paths import CONF_DIR
from ppo_lab.utils.redaction import mask_output

__all__ = ["main"]

EXIT_FAILED, EXIT_REFUSED, EXIT_OUT_OF_MEMORY, EXIT_INTERRUPTED = 1, 2, 3, 130
EXIT_TERMINATED = 128 + signal.SIGTERM


def job(cfg: DictConfig) -> float | None:
    """Run one job in the folder that Hydra made for it; return its final return.

    A failed run is a status, not an exception: Hydra would report only the first one of a grid.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    is_grid = hydra_config.mode is RunMode.MULTIRUN
    if (folder / "metrics.jsonl").exists():
        _refuse(f"ppo_lab: {folder}: holds a run already; choose another folder for this one")
    summary = run_in_folder(
        load(cfg),
        folder,
        overrides=list(hydra_config.overrides.task),
        group=folder.parent.name if is_grid else None,
    )
    if not is_grid:
        Console().print(summary_panel(summary))
        _print_lines(places(summary))
        if summary["status"] == Status.out_of_memory.value:
            sys.exit(EXIT_OUT_OF_MEMORY)
        _exit_unless_finished([summary], num_jobs=1)
    final_return: float | None = summary.get("final_return")
    return final_return


def main() -> None:
    """Check all jobs of the command line, then run them and show the results, or forecast them.

    Exit status: 0 if every job finished, 1 if one did not, 2 for a refused command line, 3 for a
    single run that was out of memory, 130 and 143 after Ctrl-C and SIGTERM.
    """
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    mask_output()
    register()
    arguments = get_args_parser().parse_args()
    shows_only = ("help", "hydra_help", "info", "cfg", "shell_completion")
    is_run = not any(getattr(arguments, name) for name in shows_only)
    jobs = _check(arguments) if is_run else []
    if any(job.config.forecast for job in jobs):
        _show_forecasts([(job, resolve_memory(job.config)) for job in jobs])
        return
    _check_budgets([resolve_memory(job.config) for job in jobs])
    is_multirun = is_run and (not jobs or jobs[0].is_multirun)  # a study has no jobs
    if is_multirun and not arguments.multirun:
        sys.argv.append("--multirun")  # Hydra reads its own flag only
    try:
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")(job)()
    except KeyboardInterrupt:
        _show_grid()
        sys.exit(EXIT_INTERRUPTED)
    if (summaries := _show_grid()) is not None:
        _exit_unless_finished(summaries, len(jobs))


def _check(arguments: Namespace) -> list[Job]:
    """Return the jobs of Hydra's ``arguments``; exit with a message if one cannot run."""
    try:
        if arguments.config_path is not None:
            allowed = "replaces the project's own config; add yours with --config-dir"
            raise ConfigError("--config-path", arguments.config_path, allowed)
        outputs = Path("outputs")
        if outputs.exists() and not (outputs.is_dir() and os.access(outputs, os.W_OK)):
            allowed = "must be a folder that can be written to; runs are saved there"
            raise ConfigError("outputs", outputs.resolve(), allowed)
        return check_jobs(
            arguments.overrides,
            is_multirun=arguments.multirun,
            config_dir=arguments.config_dir,
            config_name=arguments.config_name,
            check_study=_check_study,
        )
    except Exception as error:
        message = explain(error, arguments.overrides)
        if message is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        _refuse(message)


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
        Console().print(forecasts_table(jobs) if first.is_multirun else forecast_table(config))


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)  # noqa: T201 - the command's output
    sys.exit(EXIT_REFUSED)


def _print_lines(lines: str, style: str = "") -> None:
    if lines:
        Console().print(lines, style=style, soft_wrap=True, highlight=False, markup=False)


def _show_grid() -> list[dict[str, Any]] | None:
    """Print the table of this command's grid and return its summaries; None for a single run."""
    folder = GridFolder.path
    if folder is None:
        return None
    summaries = grid_summaries(folder)
    Console().print(grid_table(summaries))
    _print_lines(reasons(summaries), "red")
    _print_lines(places({"folder": folder.resolve()}))
    return summaries


def _exit_unless_finished(summaries: Sequence[Mapping[str, Any]], num_jobs: int) -> None:
    if sum(summary["status"] == Status.finished.value for summary in summaries) < num_jobs:
        sys.exit(EXIT_FAILED)


def _exit_on_sigterm(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    logging.getLogger(__name__).warning("SIGTERM: closing the run")
    sys.exit(EXIT_TERMINATED)
