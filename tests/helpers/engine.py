"""A whole study without its training: what runs trials answers at once, from a formula."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from hydra import initialize_config_dir

from ppo_lab.config.compose import check_jobs, register
from ppo_lab.config.run import Config
from ppo_lab.studies import command
from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.scheduler import Ending
from ppo_lab.utils.paths import CONF_DIR
from ppo_lab.workers import Event, Executor, Exited, Reported
from ppo_lab.workers.base import Decision, Task, TrialReport
from ppo_lab.workers.result import Result, worst_status

__all__ = ["FormulaExecutor", "carried", "commanded", "learn"]


def commanded(monkeypatch, *overrides: str) -> int:
    """Give a study's command in this process, to the formula; return its exit status."""
    monkeypatch.setattr(command, "choose_executor", lambda *_: FormulaExecutor())
    register()
    try:
        check_jobs(
            overrides,
            is_multirun=True, config_dir=None, config_name=None, check_study=command.run_study,
        )  # fmt: skip
    except SystemExit as ended:
        return ended.code
    return 0


def carried(plan: Plan, executor: Executor) -> Ending:
    """Carry a study on as far as it goes, as the command would; return why that ended."""
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        return command.run_plan(plan, executor)


def learn(config: Config, share: float) -> float | str:
    """Return the return after ``share`` of a run, or the status that it ends with there.

    The clip is best at 0.15 and useless above 0.4, where the run breaks; seeds differ by a little.
    """
    if config.epsilon > 0.4:
        return "out_of_memory"
    distance = abs(math.log(config.epsilon / 0.15))
    return 100.0 * share * math.exp(-distance) + config.seed % 3


class FormulaExecutor(Executor):
    """Takes tasks, reports every mark and obeys the verdicts, as a trial's process would."""

    def __init__(
        self, formula: Callable[[Config, float], float | str] = learn, num_slots: int = 2
    ) -> None:
        self._formula, self._num_slots = formula, num_slots
        self._running: dict[int, tuple[Task, deque[int]]] = {}
        self._stopped: dict[int, str] = {}
        self.tasks: list[Task] = []

    @property
    def num_slots(self):
        return self._num_slots

    def slots(self):
        return {number: slot for slot, number in enumerate(self._running)}

    def start(self, task):
        assert len(self._running) < self._num_slots
        self.tasks.append(task)
        self._running[task.number] = (task, deque(task.marks))

    def tell(self, number, verdict: Decision):
        if verdict.stop is not None:
            self._stopped[number] = verdict.stop

    def wait(self, timeout_s) -> list[Event]:
        """Advance every trial by a mark, those that have passed their last to the end."""
        return [self._step(*running) for running in list(self._running.values())]

    def _step(self, task: Task, marks: deque[int]) -> Event:
        number = task.number
        step = marks[0] if marks else task.configs[0].total_steps
        share = step / task.configs[0].total_steps
        learned = [self._formula(config, share) for config in task.configs]
        broken = next((status for status in learned if isinstance(status, str)), None)
        if marks and broken is None and number not in self._stopped:
            return Reported(number, TrialReport(marks.popleft(), tuple(learned)))
        stop = self._stopped.pop(number, None)
        status = broken or ("pruned" if stop else "finished")
        del self._running[number]
        try:
            self._leave(task, status, stop or broken, learned, step)
        except OSError:
            return Exited(number, 1)  # a process would end of it
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
