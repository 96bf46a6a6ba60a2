"""Run a study from a composed command: search, confirmation, output files, summary."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import optuna
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig
from optuna.study import Study
from rich.console import Console

from ppo_lab.config.error_messages import explain
from ppo_lab.studies.choose_executor import choose_executor
from ppo_lab.studies.definition.plan import Plan, make_plan
from ppo_lab.studies.display.log_lines import print_line
from ppo_lab.studies.results.confirmation import (
    Confirmed,
    confirmation_plan,
    read_confirmation,
)
from ppo_lab.studies.results.files import write_outputs
from ppo_lab.studies.results.panel import commands, study_panel
from ppo_lab.studies.results.study_result import read_study
from ppo_lab.studies.results.wandb import track_study
from ppo_lab.studies.scheduler import STOP_FILE, Ending, InterruptHandler
from ppo_lab.studies.session import StudyRunner
from ppo_lab.studies.store.retry import StorageLostError
from ppo_lab.utils.errors import ConfigError
from ppo_lab.workers.base import WorkerPool

__all__ = ["check_study", "run_plan", "run_study"]

_EXITS = {Ending.complete: 0, Ending.stopped: 0, Ending.interrupted: 130, Ending.storage_lost: 1}
_EXIT_REFUSED = 2


def check_study(command: DictConfig, loader: ConfigLoader) -> None:
    """Check a study's command before anything is created.

    Raises:
        ConfigError: the study cannot run.
    """
    make_plan(command, loader).check()


def run_study(command: DictConfig, loader: ConfigLoader) -> None:
    """Run the study of a composed command; exit with a status other than 0 unless it succeeds."""
    try:
        status = _EXITS[run_plan(make_plan(command, loader))]
    except ConfigError as error:  # found only in the stored study, such as another space
        print_line(explain(error, list(command.hydra.overrides.task)) or str(error))
        status = _EXIT_REFUSED
    if status:
        sys.exit(status)


def run_plan(plan: Plan, pool: WorkerPool | None = None) -> Ending:
    """Run a study's trials and its confirmation, write its files, and return why it ended.

    Raises:
        ConfigError: the study exists with other settings, or has a STOP file.
    """
    stop = plan.folder / STOP_FILE
    if stop.exists():
        raise ConfigError("STOP", stop, "stops this study; remove the file to go on")
    pool = pool or choose_executor(plan)  # its server imports while the storage is opened
    interrupts = InterruptHandler()
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        with _log_file(plan), interrupts.installed():
            runner = StudyRunner(plan, pool, interrupts)
            with closing(runner.database):
                return _run(plan, runner, interrupts)
    except StorageLostError as error:
        logging.getLogger(__name__).error("%s", error)
        return Ending.storage_lost
    finally:
        pool.close()


def _run(plan: Plan, runner: StudyRunner, interrupts: InterruptHandler) -> Ending:
    ending, study = runner.run(plan)
    if ending is Ending.storage_lost:
        return ending
    confirmed: Confirmed | None = None
    try:
        if ending is Ending.complete:
            ending, confirmed = _confirm(plan, study, runner)
    finally:
        if ending is not Ending.storage_lost:
            result = runner.call("read", read_study, plan, study, confirmed)
            runner.call("write", write_outputs, result)
            console = Console()
            console.print(study_panel(result))
            console.out(commands(result.plan), highlight=False)
            if runner.had_work and not interrupts.is_urgent and (link := track_study(result)):
                console.out(f"W&B        {link}", highlight=False)
            runner.close()  # else the trials stay reserved until the next start finds us dead
    return ending


def _confirm(plan: Plan, study: Study, runner: StudyRunner) -> tuple[Ending, Confirmed | None]:
    """Run the best trials again with fresh seeds; return the result once it is complete."""
    confirming = runner.call("read", confirmation_plan, plan, study, runner.database)
    if confirming is None:
        return Ending.complete, None
    ending, fresh = runner.run(confirming)
    if ending is not Ending.complete:
        return ending, None
    return ending, runner.call("read", read_confirmation, plan, study, confirming, fresh)


@contextmanager
def _log_file(plan: Plan) -> Iterator[None]:
    """Log into the study's folder, including Optuna's messages."""
    handler = logging.FileHandler(plan.folder / "log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
