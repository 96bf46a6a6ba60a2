"""``python -m ppo_lab sweep=NAME`` for a study: from a composed command to its end."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from ppo_lab.errors import ConfigError
from ppo_lab.refusals import explain
from ppo_lab.sweep.book import Book
from ppo_lab.sweep.events import StorageAway, StudyOpened, Watcher
from ppo_lab.sweep.executors import Executor, ProcessExecutor
from ppo_lab.sweep.lease import Lease
from ppo_lab.sweep.lines import LineWatcher
from ppo_lab.sweep.parent import STOP_FILE, Ending, Parent, Signals
from ppo_lab.sweep.plan import Plan, make_plan
from ppo_lab.sweep.retry import Patience, StorageLostError
from ppo_lab.sweep.slots import choose_slots
from ppo_lab.sweep.storage import Database, masked

__all__ = ["check_study", "run_plan", "run_study"]

_EXITS = {
    Ending.complete: 0,
    Ending.stopped: 0,
    Ending.interrupted: 130,
    Ending.storage_lost: 1,
}
_EXIT_REFUSED = 2


def check_study(command: DictConfig, loader: ConfigLoader) -> None:
    """Check all that can be checked before anything is created.

    Raises:
        ConfigError: the study cannot run.
    """
    make_plan(command, loader).check()


def run_study(command: DictConfig, loader: ConfigLoader) -> None:
    """Run the study of a composed command; leave with a status unless it is complete."""
    try:
        status = _EXITS[run_plan(make_plan(command, loader))]
    except ConfigError as error:  # what only the study itself could tell, such as another space
        message = explain(error, list(command.hydra.overrides.task))
        print(message, file=sys.stderr)  # noqa: T201 - what the command says
        status = _EXIT_REFUSED
    if status:
        sys.exit(status)


def run_plan(plan: Plan) -> Ending:
    """Open the study, run its trials, and return why that ended.

    Raises:
        ConfigError: the study was begun otherwise, or is stopped by its STOP file.
    """
    stop = plan.folder / STOP_FILE
    if stop.exists():
        raise ConfigError("STOP", stop, "stops this study; remove the file to go on")
    num_slots, devices = choose_slots(plan.study.num_slots, plan.config)
    executor = ProcessExecutor(num_slots, devices)  # its server imports while we open the storage
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        with _log_file(plan):
            return _run(plan, executor)
    finally:
        executor.close()


def _run(plan: Plan, executor: Executor) -> Ending:
    watchers: list[Watcher] = [LineWatcher(_print)]
    signals = Signals(_print)

    def tell_outage(what: str, waited_s: float) -> None:
        for watcher in watchers:
            watcher.handle(StorageAway(what, waited_s))

    patience = Patience(plan.study.patience_s, tell_outage, lambda: signals.is_urgent)
    with signals.installed():
        try:
            database = patience.call("open", lambda: Database(plan.url, plan.folder))
            lease = patience.call("open", lambda: Lease(database, plan.study.lease_s))
            patience.call("open", lease.renew)
            book = patience.call("open", lambda: Book(plan, database, lease))
        except StorageLostError as error:
            logging.getLogger(__name__).error("%s", error)
            return Ending.storage_lost
        counts = patience.call("count", book.counts)
        opened = StudyOpened(plan.name, plan.folder, masked(plan.url), counts, executor.num_slots)
        for watcher in watchers:
            watcher.handle(opened)
        parent = Parent(plan, book, lease, executor, patience, signals, watchers)
        ending = parent.run()
        if ending is not Ending.storage_lost:
            lease.close()  # else its trials stay ours, until the next start finds us dead
        return ending


@contextmanager
def _log_file(plan: Plan) -> Iterator[None]:
    """Log into the study's folder, Optuna's own lines too."""
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


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - what the command says
