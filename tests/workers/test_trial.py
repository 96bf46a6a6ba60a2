"""A trial in a process of its own: seeds, reports, exit."""

import dataclasses
import multiprocessing
import os
import signal
import time

import pytest
import torch

from ppo_lab.runner import group
from ppo_lab.runner.result import Result, read_result
from ppo_lab.runner.run_record import RunOutput
from ppo_lab.runner.signals import Interrupted
from ppo_lab.runner.stack import Stack
from ppo_lab.tracking import read_metrics
from ppo_lab.training.checkpoint import load_checkpoint
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.errors import ConfigError
from ppo_lab.workers import trial
from ppo_lab.workers.base import Decision, Exited, Task, TrialProgress, TrialReport
from ppo_lab.workers.processes import ProcessPool
from ppo_lab.workers.trial import Mailbox, TaskRun
from ppo_lab.workers.worker import _Worker
from tests.helpers.studies import plan_of


@pytest.fixture(scope="module")
def plan():
    return plan_of("study.num_trials=3", "study.num_seeds=2", "study.storage=sqlite:///study.db",
                   "compile=never")  # fmt: skip


def task_of(plan, folder, *, report_steps=(), **changes):
    folder.mkdir(parents=True, exist_ok=True)
    configs = tuple(dataclasses.replace(c, **changes) for c in plan.trial_configs({"epsilon": 0.2}))
    output = RunOutput(folder, ["epsilon=0.2"], "quick", run_id="trial")
    return Task(0, configs, output, report_steps=report_steps)


class Answering:
    """A mailbox that receives a decision for each report that is sent."""

    is_writable = True

    def __init__(self, stop_at=None):
        self.sent, self.stop_at, self._replies = [], stop_at, []

    def send(self, message):
        self.sent.append(message)
        if isinstance(message, TrialReport):
            stop = "behind" if message.step == self.stop_at else None
            self._replies.append(Decision(message.number, message.step, stop))

    def receive(self, wait_s=0.0):
        return self._replies.pop(0) if self._replies else None


def exit_code_of(task, mailbox):
    """Train a trial as a worker does."""
    stack, exit_codes = Stack(len(task.configs)), []
    TaskRun(task, stack, mailbox, exit_codes.append).begin()
    while stack.has_work:
        stack.step()
    stack.close()
    (exit_code,) = exit_codes
    return exit_code


def run_trial(task, mailbox):
    assert exit_code_of(task, mailbox) == 0
    return read_result(task.folder)


def test_a_trial_whose_result_cannot_be_written_has_failed(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(result, folder):
        raise FileNotFoundError(folder)

    monkeypatch.setattr(Result, "write", write)
    assert exit_code_of(task_of(plan, tmp_path / "0000"), Answering()) == 1


def test_reports_are_sent_once_each_with_every_seeds_return(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mailbox = Answering()
    # Iterations end at 1,024 and 2,048 steps; after the last none is sent.
    task = task_of(plan, tmp_path / "0000", report_steps=(500, 1000, 1500))
    result = run_trial(task, mailbox)
    reports = [message for message in mailbox.sent if isinstance(message, TrialReport)]
    assert [report.step for report in reports] == [500, 1000]
    assert all(len(report.returns) == 2 and None not in report.returns for report in reports)
    assert result.status == "finished"
    assert [summary["seed"] for summary in result.summaries] == [1, 2]
    notes = [message for message in mailbox.sent if isinstance(message, TrialProgress)]
    assert notes[0].step == 1024
    assert notes[0].env_steps_per_s > 0


def test_a_trial_that_was_stopped_goes_on_in_the_folder_of_its_next_attempt(
    plan, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    steps = {"report_steps": (1000, 2000, 3000), "total_steps": 4096}
    alone = run_trial(task_of(plan, tmp_path / "alone", **steps), undisturbed := Answering())
    stack, first = Stack(2), Answering()
    run = TaskRun(task_of(plan, tmp_path / "0007", **steps), stack, first, lambda code: None)
    run.begin()
    for _ in range(2):  # of four iterations
        stack.step()
    stack.abort(run.group)
    stack.close()
    assert read_result(tmp_path / "0007").status == "interrupted"
    (tmp_path / "0007" / "attempt_2").mkdir()  # was killed before it began
    second = Answering()
    result = run_trial(task_of(plan, tmp_path / "0007" / "attempt_3", **steps), second)
    assert result.status == "finished"
    assert [summary["resumed"]["iteration"] for summary in result.summaries] == [2, 2]
    seeds = zip(alone.summaries, result.summaries)
    assert all(one["final_return"] == other["final_return"] for one, other in seeds)
    for seed in ("seed_1", "seed_2"):
        assert rows_of(tmp_path / "0007" / "attempt_3" / seed) == rows_of(tmp_path / "alone" / seed)
    reports = [message for message in second.sent if isinstance(message, TrialReport)]
    assert reports == [message for message in undisturbed.sent if isinstance(message, TrialReport)]


@pytest.mark.parametrize("is_awaited", [False, True], ids=["at a message", "at a decision"])
def test_a_trial_whose_scheduler_is_gone_is_interrupted_and_leaves_its_checkpoint(
    plan, tmp_path, monkeypatch, is_awaited
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "_PROGRESS_INTERVAL_S", 0.0)
    ours, theirs = multiprocessing.Pipe()
    send = Mailbox.send

    def die(mailbox, message):
        if is_awaited:
            send(mailbox, message)
            ours.recv()  # an end that is closed with unread messages resets the connection
        if not is_awaited or isinstance(message, TrialReport):
            ours.close()
        if not is_awaited:
            send(mailbox, message)

    monkeypatch.setattr(Mailbox, "send", die)
    task = task_of(plan, tmp_path / "0000", report_steps=(1000,), total_steps=4096)
    ours.send(task)
    log_file = tmp_path / "log"
    with pytest.raises(Interrupted):
        _Worker(theirs, log_file, max_lanes=2, exits_after_task=True).run()
    result = read_result(task.folder)
    assert (result.status, result.reason) == ("interrupted", "stopped by a signal")
    assert [load_checkpoint(task.folder / name).folder.name for name in ("seed_1", "seed_2")] == [
        "1", "1"
    ]  # fmt: skip


def rows_of(folder):
    """Return a run's records but for measured times."""
    measured = ("time/", "perf/", "charts/SPS")
    return [
        {key: value for key, value in row.items() if not key.startswith(measured)}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def test_an_error_before_a_trial_begins_is_its_result(plan, tmp_path, monkeypatch):
    def refuse(config):
        raise ConfigError("device", config.device, "is not here")

    monkeypatch.setattr(trial, "resolve_memory", refuse)
    task = task_of(plan, tmp_path / "0000")
    assert exit_code_of(task, Answering()) == 1
    assert read_result(task.folder).reason == "ConfigError: device=auto: is not here"


def test_a_decision_ends_the_trial_in_all_its_seeds(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = task_of(plan, tmp_path / "0000", report_steps=(500, 1000, 1500))
    result = run_trial(task, Answering(stop_at=500))
    assert (result.status, result.reason) == ("pruned", "behind")
    assert [summary["env_steps"] for summary in result.summaries] == [1024, 1024]


def test_seeds_run_one_after_the_other_where_a_strategy_holds_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_of("memory=offloaded_optimizer", "study.num_seeds=2")
    mailbox = Answering()
    result = run_trial(task_of(plan, tmp_path / "0000", report_steps=(1000,)), mailbox)
    assert [summary["seed"] for summary in result.summaries] == [1, 2]
    (report,) = (message for message in mailbox.sent if isinstance(message, TrialReport))
    assert None not in report.returns  # sent only once both seeds are past it


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (None, "diverged", "loss is"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out_of_memory", "what would fit"),
        (RuntimeError("the pole caught fire"), "failed", "RuntimeError: the pole caught fire"),
    ],
)  # fmt: skip
def test_nan_a_full_memory_and_an_error_end_the_trial_with_their_reason(
    plan, tmp_path, monkeypatch, error, status, reason
):
    def update(trainer, rows):
        if trainer.iteration == 1:
            raise error
        return original(trainer, rows)

    original = Trainer.update
    monkeypatch.chdir(tmp_path)
    if error is not None:
        monkeypatch.setattr(Trainer, "update", update)
    monkeypatch.setattr(group, "out_of_memory_line", lambda *_: "what would fit")  # takes seconds
    task = task_of(plan, tmp_path / "0000", lr=3e-4 if error else 1e30)
    result = run_trial(task, Answering())
    assert result.status == status
    assert reason in result.reason


@pytest.fixture
def pool():
    running = ProcessPool(2, devices=["7"])
    yield running
    running.close()


def until_exit(pool, timeout_s=60.0):
    """Return the events up to the first exit."""
    events, deadline = [], time.monotonic() + timeout_s
    while not any(isinstance(event, Exited) for event in events):
        assert time.monotonic() < deadline, events
        events += pool.wait(0.5)
    return events


def test_a_process_reports_before_its_exit_and_sees_the_device_of_its_worker(
    plan, tmp_path, monkeypatch, pool
):
    monkeypatch.chdir(tmp_path)
    assert pool.start(task_of(plan, tmp_path / "0000", report_steps=(1000,))) == 0
    pid = pool._workers[0].process.pid
    events = until_exit(pool)
    assert isinstance(events[0], TrialProgress | TrialReport)
    assert events[-1] == Exited(0, 0)
    assert pool._workers == {}
    pool.send(Decision(0, 1000, "too late"))  # a decision for a trial that has ended is no error
    pool.stop(0)
    assert pid not in [child.pid for child in multiprocessing.active_children()]
    log = (tmp_path / "0000" / "log").read_text()
    assert "CUDA_VISIBLE_DEVICES=7" in log


def test_a_killed_process_costs_its_trial_only(plan, tmp_path, monkeypatch, pool):
    monkeypatch.chdir(tmp_path)
    pool.start(task_of(plan, tmp_path / "0000", total_steps=10**9))
    pool.start(dataclasses.replace(task_of(plan, tmp_path / "0001"), number=1))
    os.kill(pool._workers[0].process.pid, signal.SIGKILL)
    exits = [event for event in until_exit(pool) if isinstance(event, Exited)]
    assert exits == [Exited(0, -signal.SIGKILL)]
    assert until_exit(pool)[-1] == Exited(1, 0)
    assert read_result(tmp_path / "0000") is None
    assert read_result(tmp_path / "0001").status == "finished"
