"""Run a study from a composed command: search, confirmation, output files, summary."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import ParamSpec, TypeVar

import optuna
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig
from optuna.study import Study
from rich.console import Console

from ppo_lab.config.error_messages import explain
from ppo_lab.grids.table import grid_table
from ppo_lab.reports.report import report_place
from ppo_lab.studies.choose_executor import choose_executor
from ppo_lab.studies.definition.plan import Plan, make_plan
from ppo_lab.studies.display.log_lines import print_line
from ppo_lab.studies.results.confirmation import Confirmed, confirmation_plan, read_confirmation
from ppo_lab.studies.results.files import output_files, run_summaries
from ppo_lab.studies.results.panel import commands, study_panel
from ppo_lab.studies.results.study_result import StudyResult, importances, read_study
from ppo_lab.studies.results.wandb import track_study
from ppo_lab.studies.scheduler import STOP_FILE, Ending, InterruptHandler
from ppo_lab.studies.session import StudyRunner
from ppo_lab.studies.store.retry import StorageLostError
from ppo_lab.utils.errors import ConfigError
from ppo_lab.workers.base import WorkerPool

__all__ = ["check_study", "run_plan", "run_study"]

log = logging.getLogger(__name__)

_EXIT_FAILED, _EXIT_REFUSED = 1, 2

P = ParamSpec("P")
T = TypeVar("T")


def check_study(command: DictConfig, loader: ConfigLoader) -> None:
    """Raise ``ConfigError`` unless the study of a command can run; create nothing."""
    make_plan(command, loader).check()


def run_study(command: DictConfig, loader: ConfigLoader) -> None:
    """Run the study of a composed command; exit with a status other than 0 unless it succeeds."""
    try:
        plan = make_plan(command, loader)
        if (num_trials := plan.study.num_trials) < command.study.num_trials:
            print_line(f"the grid is complete after {num_trials} trials, which end the study")
        _, status = run_plan(plan, makes_report=command.report)
    except ConfigError as error:  # found only in the stored study, such as another space
        print_line(explain(error, list(command.hydra.overrides.task)) or str(error))
        status = _EXIT_REFUSED
    if status:
        sys.exit(status)


def run_plan(
    plan: Plan, pool: WorkerPool | None = None, *, makes_report: bool = False
) -> tuple[Ending, int]:
    """Run a study's trials and its confirmation, write its files; return why it ended.

    The exit status comes with it: 1 if every trial failed, if a file or another view of the result
    could not be made, or if the storage was lost; 130 or 143 after a signal.

    Raises:
        ConfigError: the study exists with other settings, has a STOP file, or its folder or storage
            cannot be used.
    """
    stop = plan.folder / STOP_FILE
    if stop.exists():
        raise ConfigError("STOP", stop, "stops this study; remove the file to go on")
    pool = pool or choose_executor(plan)  # its server imports while the storage is opened
    interrupts = InterruptHandler()
    try:
        with _log_file(plan):
            # Ctrl-C ends the command at once until the storage is open, as nothing runs yet.
            runner = StudyRunner(plan, pool, interrupts)
            with closing(runner.database), interrupts.installed():
                ending, status = _run(plan, runner, interrupts, makes_report)
    except StorageLostError as error:
        log.error("%s", error)
        ending, status = Ending.storage_lost, _EXIT_FAILED
    finally:
        pool.close()
    if interrupts.is_stopping and ending in (Ending.interrupted, Ending.storage_lost):
        status = interrupts.exit_status
    return ending, status


def _run(
    plan: Plan, runner: StudyRunner, interrupts: InterruptHandler, makes_report: bool
) -> tuple[Ending, int]:
    ending, study = runner.run(plan)
    last, confirmed = _LastSteps(), None
    if ending is Ending.complete:
        confirming = last.take("the confirmation", _confirm, plan, study, runner)
        ending, confirmed = confirming or (ending, None)
    if ending is Ending.storage_lost:
        return ending, _EXIT_FAILED
    shares = last.take("the importances", runner.call, "read", importances, plan, study) or {}
    result = last.take(
        "the result", runner.call, "read", read_study, plan, study, shares, confirmed
    )
    if result is not None:
        for name, write in output_files(result).items():
            last.take(name, runner.call, "write", write)
        last.take("the panel", _show, result)
        if makes_report and not interrupts.is_stopping:
            place = report_place(plan.folder, plan.url)
            Console().out(f"report     {place}", highlight=False)
        if runner.had_work and not interrupts.is_urgent:
            last.take("W&B", _track, result, study)
    runner.close()  # else the trials stay reserved until the next start finds us dead
    is_bad = last.has_failed or (result is not None and result.is_failure)
    return ending, _EXIT_FAILED if is_bad else 0


class _LastSteps:
    """What follows the trials, one step after another: one that fails costs only itself."""

    has_failed = False

    def take(self, what: str, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what ``step`` does; if it fails, print why in a line and return None."""
        try:
            return step(*args, **kwargs)
        except StorageLostError:
            raise
        except Exception as error:
            self.has_failed = True
            log.info("%s", what, exc_info=True)  # into the study's log, not on the screen
            reason = str(error).strip().partition("\n")[0] or "see the study's log"
            print_line(f"ppo_lab: {what} failed: {type(error).__name__}: {reason}")
            return None


def _show(result: StudyResult) -> None:
    console = Console()
    console.print(study_panel(result))
    if result.plan.is_forecast and (runs := run_summaries(result)):
        console.print(grid_table(runs), crop=False)
    console.out(commands(result.plan), highlight=False)


def _track(result: StudyResult, study: Study) -> None:
    if link := track_study(result, study):
        Console().out(f"W&B        {link}", highlight=False)


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
    """Make the study's folder and log into it, including Optuna's messages."""
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(plan.folder / "log")
    except OSError as error:
        allowed = f"its folder {plan.folder} cannot be written to: {error.strerror}"
        raise ConfigError("study.name", plan.name, allowed) from error
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
