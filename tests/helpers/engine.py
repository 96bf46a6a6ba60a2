"""A study without training: a worker pool whose trials return values of a formula."""

from __future__ import annotations

import functools
import math
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

import optuna
from hydra import initialize_config_dir

from ppo_lab.config.compose import check_jobs, register
from ppo_lab.config.run import Config
from ppo_lab.runner.result import Result, worst_status
from ppo_lab.studies import command
from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.scheduler import Ending
from ppo_lab.utils.paths import CONF_DIR
from ppo_lab.workers.base import Decision, Exited, Task, TrialReport, WorkerEvent, WorkerPool

__all__ = ["FormulaPool", "carried", "commanded", "ended", "learn", "tables"]


def commanded(monkeypatch, *overrides: str, config_dir: str | None = None) -> int:
    """Run a study's command in this process with a ``FormulaPool``; return its exit status."""
    monkeypatch.setattr(command, "choose_executor", lambda *_: FormulaPool())
    register()
    try:
        check_jobs(
            overrides,
            is_multirun=True, config_dir=config_dir, config_name=None,
            check_study=command.run_study,
        )  # fmt: skip
    except SystemExit as ended:
        return ended.code
    return 0


def ended(plan: Plan, pool: WorkerPool) -> tuple[Ending, int]:
    """Run a study as the command would; return why it ended and the exit status."""
    if plan.url.get_backend_name() == "sqlite" and not plan.folder.exists():
        plan.folder.mkdir(parents=True)
        Path(plan.url.database or "").write_bytes(tables())
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        return command.run_plan(plan, pool)


@functools.cache
def tables() -> bytes:
    """Return an SQLite file with Optuna's tables and no study; creating it takes half a second."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.db"
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        storage.engine.dispose()
        return path.read_bytes()


def carried(plan: Plan, pool: WorkerPool) -> Ending:
    """Run a study as the command would; return why it ended."""
    return ended(plan, pool)[0]


def learn(config: Config, share: float) -> float | str:
    """Return the mean return after ``share`` of a run, or the status that the run ends with.

    It is highest at epsilon 0.15; above 0.4 the run fails. Seeds differ by at most 2.
    """
    if config.epsilon > 0.4:
        return "out_of_memory"
    distance = abs(math.log(config.epsilon / 0.15))
    return 100.0 * share * math.exp(-distance) + config.seed % 3


class FormulaPool(WorkerPool):
    """Sends every report and follows the decisions, as a worker would; without training."""

    def __init__(
        self, formula: Callable[[Config, float], float | str] = learn, max_running: int = 2
    ) -> None:
        self._formula, self._max_running = formula, max_running
        self._running: dict[int, tuple[Task, deque[int]]] = {}
        self._stopped: dict[int, str] = {}
        self.tasks: list[Task] = []

    @property
    def max_running(self):
        return self._max_running

    def start(self, task):
        assert len(self._running) < self._max_running
        self.tasks.append(task)
        self._running[task.number] = (task, deque(task.report_steps))
        return len(self._running) - 1

    def send(self, decision: Decision):
        if decision.stop is not None:
            self._stopped[decision.number] = decision.stop

    def wait(self, timeout_s) -> list[WorkerEvent]:
        """Advance every trial to its next report, or to its end after the last."""
        return [self._step(*running) for running in list(self._running.values())]

    def _step(self, task: Task, steps: deque[int]) -> WorkerEvent:
        number = task.number
        step = steps[0] if steps else task.configs[0].total_steps
        share = step / task.configs[0].total_steps
        learned = [self._formula(config, share) for config in task.configs]
        broken = next((status for status in learned if isinstance(status, str)), None)
        if steps and broken is None and number not in self._stopped:
            return TrialReport(number, steps.popleft(), tuple(learned))
        stop = self._stopped.pop(number, None)
        status = broken or ("pruned" if stop else "finished")
        del self._running[number]
        try:
            self._leave(task, status, stop or broken, learned, step)
        except OSError:
            return Exited(number, 1)  # a worker would fail, too
        return Exited(number, 0)

    def _leave(self, task, status, reason, learned, step):
        summaries = [
            {
                "seed": config.seed,
                "status": status,
                "reason": None if status == "finished" else reason,
                "final_return": value if isinstance(value, float) else None,
                "env_steps": step,
                "env_steps_per_s": 1000.0 * config.num_envs,
                "wall_time_s": 1.0,
                "folder": str(task.folder / f"seed_{config.seed}"),
            }
            for config, value in zip(task.configs, learned)
        ]
        worst, why = worst_status(summaries)
        Result(task.number, worst, why, summaries).write(task.folder)

    def stop(self, number):
        self._running.pop(number, None)

    def close(self):
        self._running.clear()
