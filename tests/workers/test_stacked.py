"""Trials as lanes of workers' stacks: reports, decisions, killed workers, choice of a worker."""

import dataclasses
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from ppo_lab.config.run import Config
from ppo_lab.runner.result import read_result
from ppo_lab.runner.run_record import RunOutput
from ppo_lab.runner.stack import Stack
from ppo_lab.studies.choose_executor import choose_executor, why_not_stacked
from ppo_lab.tracking import read_metrics, read_summary
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.errors import ConfigError
from ppo_lab.workers import resources
from ppo_lab.workers.base import Decision, Exited, Task, TrialReport
from ppo_lab.workers.processes import ProcessPool, WorkerHandle
from ppo_lab.workers.resources import choose_lanes
from ppo_lab.workers.stacked import StackedPool
from ppo_lab.workers.trial import TaskRun
from tests.helpers.studies import left_by, plan_of, started, trials_of

STACKED = "study.executor=stacked"


@pytest.fixture(scope="module")
def plan():
    return plan_of("study.num_seeds=2", "study.storage=sqlite:///study.db", "num_envs=2",
                   "compile=never")  # fmt: skip


def task_of(plan, folder, number=0, *, report_steps=(), **changes):
    folder = folder / f"{number:04}"
    folder.mkdir(parents=True)
    configs = tuple(dataclasses.replace(c, **changes) for c in plan.trial_configs({"epsilon": 0.2}))
    output = RunOutput(folder, ["epsilon=0.2"], "quick", run_id="trial")
    return Task(number, configs, output, report_steps=report_steps)


def pool_of(plan, folder, num_workers):
    """Return a pool whose workers have four lanes each."""
    return StackedPool(
        plan.config, folder, num_workers=num_workers, max_lanes=4, num_tasks=9, num_seeds=2,
        num_ahead=1,
    )  # fmt: skip


@pytest.fixture
def pool(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    running = pool_of(plan, tmp_path, num_workers=1)
    yield running
    running.close()


def tasks_of(pool):
    return [number for worker in pool._workers.values() for number in worker.tasks]


def until_exits(pool, count, answer=None, timeout_s=120.0):
    """Return the events up to ``count`` exits; ``answer`` decides on each report."""
    events, deadline = [], time.monotonic() + timeout_s
    while sum(isinstance(event, Exited) for event in events) < count:
        assert time.monotonic() < deadline, events
        for event in pool.wait(0.5):
            events.append(event)
            if isinstance(event, TrialReport) and answer:
                pool.send(Decision(event.number, event.step, answer(event)))
    return events


def test_trials_share_a_stack_and_each_sends_its_reports_and_then_its_exit(plan, tmp_path, pool):
    assert pool.max_running == 3  # two trials of two seeds in four lanes, and one that waits
    for number in range(3):
        task = task_of(plan, tmp_path, number, report_steps=(500, 1000))
        assert pool.start(task) == number
    events = until_exits(pool, 3, answer=lambda event: None)
    for number in range(3):
        mine = [event for event in events if event.number == number]
        reports = [event for event in mine if isinstance(event, TrialReport)]
        assert [report.step for report in reports] == [500, 1000]
        assert len(reports[0].returns) == 2
        assert mine[-1] == Exited(number, 0)
        result = read_result(tmp_path / f"{number:04}")
        assert result.status == "finished"
        assert [summary["seed"] for summary in result.summaries] == [1, 2]
        assert result.summaries[0]["stack"]["num_lanes"] == 4
    assert tasks_of(pool) == []


def test_a_decision_ends_its_trial_and_the_next_takes_its_lanes(plan, tmp_path, pool):
    for number in range(3):
        pool.start(task_of(plan, tmp_path, number, report_steps=(500,), total_steps=10_240))
    events = until_exits(pool, 3, answer=lambda e: "behind" if e.number == 1 else None)
    ends = [event.number for event in events if isinstance(event, Exited)]
    assert ends[0] == 1
    results = [read_result(tmp_path / f"{number:04}") for number in range(3)]
    assert [result.status for result in results] == ["finished", "pruned", "finished"]
    assert results[1].reason == "behind"
    assert results[1].summaries[0]["env_steps"] < 10_240
    assert [s["stack"]["lane"] for s in results[2].summaries] == [2, 3]  # those of trial 1


def test_a_trial_that_is_stopped_ends_alone(plan, tmp_path, pool):
    pool.start(task_of(plan, tmp_path, 0, total_steps=10**9))
    pool.start(task_of(plan, tmp_path, 1))
    while not pool.wait(0.5):  # until one of them is under way
        pass
    pool.stop(0)
    until_exits(pool, 2)
    assert read_result(tmp_path / "0000").status == "interrupted"
    assert read_result(tmp_path / "0001").status == "finished"


def test_a_killed_worker_costs_the_trial_to_blame_and_the_other_goes_on(plan, tmp_path, pool):
    pool.start(task_of(plan, tmp_path, 0, total_steps=10**9))
    pool.start(task_of(plan, tmp_path, 1))
    os.kill(pool._workers[0].process.pid, signal.SIGKILL)
    while 0 not in tasks_of(pool) or 1 in tasks_of(pool):  # until 0 has a worker for itself
        assert not [event for event in pool.wait(0.5) if isinstance(event, Exited)]
    os.kill(pool._workers[0].process.pid, signal.SIGKILL)
    exits = [event for event in until_exits(pool, 2) if isinstance(event, Exited)]
    assert exits == [Exited(0, -signal.SIGKILL), Exited(1, 0)]
    assert read_result(tmp_path / "0000") is None
    assert read_result(tmp_path / "0001").status == "finished"
    rows = (tmp_path / "0001" / "seed_1" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 8  # none of the first attempt


class FakeProcess:
    """Dies when it is sent a task that is deadly."""

    def __init__(self, deadly):
        self.deadly, self.exitcode, self.sentinel = deadly, None, None

    def is_alive(self):
        return self.exitcode is None

    def join(self):
        pass

    close = join


class FakeConnection:
    """Passes a task to its process, which ends well at once unless it dies."""

    closed = False

    def __init__(self, process):
        self.process, self.events = process, []

    def send(self, task):
        if task.number in self.process.deadly:
            self.process.exitcode = 7
        self.events.append(Exited(task.number, 0))

    def poll(self):
        return bool(self.events) and self.process.exitcode is None

    def recv(self):
        return self.events.pop(0)

    def close(self):
        pass


@pytest.mark.parametrize("deadly", [{5}, {0}, {1, 6}, {7}, set()])
def test_of_many_trials_in_a_dying_worker_the_deadly_alone_fail(
    deadly, plan, tmp_path, monkeypatch
):
    pool = StackedPool(plan.config, tmp_path, num_workers=1, max_lanes=8, num_tasks=8, num_ahead=0)
    num_started = []

    def start(index, task):
        process = FakeProcess(deadly)
        pool._workers[index] = WorkerHandle(process, FakeConnection(process))
        num_started.append(index)

    def ready(sources, timeout_s):
        return sources

    monkeypatch.setattr(pool, "_start_worker", start)
    monkeypatch.setattr("ppo_lab.workers.processes.connection.wait", ready)
    task = task_of(plan, tmp_path)
    for number in range(8):
        assert pool.start(dataclasses.replace(task, number=number)) == number
    exits = {}
    while len(exits) < 8:
        exits |= {event.number: event.exit_code for event in pool.wait(0.0)}
    assert {number for number, code in exits.items() if code == 7} == deadly
    assert len(num_started) <= 1 + 4 * len(deadly)  # 8, 4, 2, 1


def test_closing_ends_what_runs_with_its_folders_complete(plan, tmp_path, pool):
    pool.start(task_of(plan, tmp_path, 0, total_steps=10**9))
    while not pool.wait(0.5):
        pass
    pool.close()
    assert tasks_of(pool) == []
    summary = read_summary(tmp_path / "0000" / "seed_1" / "summary.json")
    assert (summary["status"], summary["reason"]) == ("interrupted", "stopped by a signal")


class NoDecisions:
    """A mailbox that keeps what is sent and never receives anything."""

    is_writable = True

    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)

    def receive(self, wait_s=0.0):
        return None


def test_a_trial_whose_stack_failed_runs_again_and_sends_no_report_twice(
    plan, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    update = Trainer.update

    def fails_beside_another(trainer, rows):
        if trainer.iteration == 4 and len(trainer.live_lanes) > 2:
            raise RuntimeError("too many at once")
        return update(trainer, rows)

    monkeypatch.setattr(Trainer, "update", fails_beside_another)
    stack, mailboxes, ended = Stack(4), [NoDecisions(), NoDecisions()], []
    for number, mailbox in enumerate(mailboxes):
        # Iterations of 256 steps: the stack fails between the two reports.
        task = task_of(plan, tmp_path, number, report_steps=(500, 1500))
        TaskRun(task, stack, mailbox, ended.append).begin()
    while stack.has_work:
        stack.step()
    stack.close()
    assert ended == [0, 0]  # exit codes
    for number, mailbox in enumerate(mailboxes):
        reports = [message.step for message in mailbox.sent if isinstance(message, TrialReport)]
        assert reports == [500, 1500]
        result = read_result(tmp_path / f"{number:04}")
        assert result.status == "finished"
        rows = read_metrics(tmp_path / f"{number:04}" / "seed_1" / "metrics.jsonl")
        assert [row["iteration"] for row in rows] == list(range(1, 9))


def test_trials_of_one_program_share_a_worker_where_there_are_several(plan, tmp_path):
    pool = pool_of(plan, tmp_path, num_workers=2)
    sent = []
    for number, key in enumerate("abaabb"):  # three each: as many as a worker takes
        index = pool._choose(key)
        worker = pool._workers.setdefault(index, SimpleNamespace(tasks={}, is_apart=False))
        worker.tasks[number] = SimpleNamespace(key=key)
        sent.append(index)
    assert sent == [0, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ((), None),
        (("memory=shared_trunk",), None),
        (("study.objective=forecast_vram_gib", "study/pruner=none"), None),
        (("memory=offloaded_optimizer",), "memory=offloaded_optimizer trains 1 lane"),
        (("memory=choice(co_resident,parked)",), "memory is varied"),
        (("study.constraints=['env_steps_per_s >= 100']",), "env_steps_per_s is measured"),
        (("study.objective=wall_time_s", "study/pruner=none"), "wall_time_s is measured"),
    ],
)
def test_what_a_stack_cannot_run_runs_as_processes_and_says_why(overrides, reason, capsys):
    plan = plan_of(STACKED, *overrides)
    found = why_not_stacked(plan)
    pool = choose_executor(plan)
    pool.close()
    told = capsys.readouterr().err
    if reason is None:
        assert found is None
        assert isinstance(pool, StackedPool)
        assert told == ""
    else:
        assert found.startswith(reason)
        assert isinstance(pool, ProcessPool)
        assert told == f"study.executor=stacked runs as processes here: {found}\n"


def test_a_stack_has_no_more_lanes_than_there_are_runs_and_eight_on_a_cpu():
    config: Config = plan_of("device=cpu").config
    assert choose_lanes("auto", config) == 8
    assert choose_lanes(50, config) == 50
    assert [choose_lanes("auto", config, num_seeds=n) for n in (2, 3, 5, 9)] == [8, 9, 10, 9]
    assert choose_lanes(8, config, num_seeds=3) == 8
    # A grid may begin with a strategy of one lane and go on with others.
    assert choose_lanes("auto", plan_of("memory=offloaded_optimizer").config) == 8
    few = choose_executor(plan_of(STACKED, "study.num_trials=5", "study.num_seeds=2"))
    assert few.max_running == 2 * (3 + 1)  # 3 trials for each of two workers, and one that waits
    few.close()


@pytest.mark.parametrize(
    # 10 GiB less half a GiB of CUDA's own, of which nine tenths: 8.55 GiB for lanes.
    ("lane_gib", "num_sharing", "lanes"),
    [(0.1, 1, 85), (0.1, 2, 40), (9.0, 1, 1), (0.0001, 1, 4096)],
)
def test_a_gpu_gets_as_many_lanes_as_fit_by_forecast(monkeypatch, lane_gib, num_sharing, lanes):
    gib = 1024**3
    own = SimpleNamespace(num_bytes=gib // 4)
    peak = SimpleNamespace(total=lane_gib * gib)
    planned = SimpleNamespace(peak=peak, context=own, workspace=own)
    monkeypatch.setattr(resources, "forecast", lambda config: planned)
    monkeypatch.setattr(resources, "budget_bytes", lambda config: 10 * gib)
    config = plan_of().config
    monkeypatch.setattr(Config, "torch_device", torch.device("cuda"))
    assert choose_lanes("auto", config, num_sharing=num_sharing) == lanes


def test_a_study_refuses_the_launcher_of_grids_and_names_its_own_executor():
    with pytest.raises(ConfigError, match=r"^hydra/launcher=stacked: .*study.executor=stacked"):
        plan_of("hydra/launcher=stacked")


def test_a_stacked_study_is_booked_like_any_other(tmp_path):
    process = started(tmp_path, STACKED, "study.num_trials=4", "study.num_seeds=2")
    shown = left_by(process)
    trials = trials_of(tmp_path)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    assert "4 of 4 trials" in shown
    folder = tmp_path / "outputs" / "studies" / "quick"
    rows = read_metrics(folder / "trials" / "0000" / "seed_2" / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [1, 2]
    assert "see ../../worker_" in (folder / "trials" / "0000" / "log").read_text()
