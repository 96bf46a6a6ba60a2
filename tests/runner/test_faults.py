"""A fault of one run, wherever it comes from, ends that run only and is told in its summary."""

import dataclasses

import pytest

from ppo_lab.runner import run_record, stack
from ppo_lab.runner.exit_status import exit_status
from ppo_lab.runner.stack import Stack
from ppo_lab.tracking import Tracker, local, read_metrics, read_summary
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.errors import EnvironmentFault
from tests.helpers.trainers import config as config_of
from tests.runner.test_stack import QUICK, group_of, train

BASE = config_of(*QUICK)
SEEDS = (1, 2, 3, 4)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def runs(folder, **options):
    """Return one group per seed."""
    return [group_of(folder, dataclasses.replace(BASE, seed=seed), **options) for seed in SEEDS]


def statuses(summaries):
    return [summary["status"] for summary in summaries]


def broken_for(monkeypatch, owner, name, seed, error):
    """Have ``owner.name`` raise ``error`` where it is called for the run of ``seed``."""
    original = getattr(owner, name)

    def breaks(*args, **kwargs):
        configs = [getattr(arg, "config", arg) for arg in args]
        if any(getattr(config, "seed", None) == seed for config in configs):
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, breaks)


@pytest.mark.parametrize(
    ("owner", "name", "error", "reason"),
    [
        (run_record, "_run_info", RuntimeError("no name for it"), "RuntimeError: no name for it"),
        (stack, "over_budget", RuntimeError("no forecast"), "RuntimeError: no forecast"),
        (run_record, "save_policy", OSError(28, "No space left"), "OSError: [Errno 28] No space"),
        (run_record, "measured", ValueError("a clock"), "ValueError: a clock"),
    ],
)
def test_what_fails_around_a_run_fails_it_and_not_its_neighbours(
    owner, name, error, reason, tmp_path, monkeypatch
):
    groups = runs(tmp_path)
    broken_for(monkeypatch, owner, name, 2, error)
    summaries = train(Stack(4), groups)
    assert statuses(summaries) == ["finished", "failed", "finished", "finished"]
    assert summaries[1]["reason"].startswith(reason)
    assert exit_status(summaries[1]) == 1
    for seed in (1, 3, 4):  # they did not begin again
        rows = (tmp_path / f"seed_{seed}" / "metrics.jsonl").read_text().splitlines()
        assert len(rows) == 4
    if name != "_run_info":
        assert read_summary(tmp_path / "seed_2" / "summary.json")["status"] == "failed"


def test_one_seed_that_cannot_be_saved_leaves_the_others_of_its_trial_whole(tmp_path, monkeypatch):
    broken_for(monkeypatch, run_record, "save_policy", 2, OSError(28, "No space left"))
    group = group_of(tmp_path, *(dataclasses.replace(BASE, seed=seed) for seed in (1, 2)))
    train(Stack(2), [group])
    assert statuses(group.summaries) == ["finished", "failed"]


def test_a_tracker_that_cannot_be_closed_fails_its_run(tmp_path, monkeypatch):
    finish = Tracker.finish

    def breaks(tracker, summary, exit_code):
        if summary["seed"] == 3:
            raise RuntimeError("a sink")
        finish(tracker, summary, exit_code)

    monkeypatch.setattr(Tracker, "finish", breaks)
    summaries = train(Stack(4), runs(tmp_path))
    assert statuses(summaries) == ["finished", "finished", "failed", "finished"]


def test_a_summary_that_cannot_be_written_is_a_failure(tmp_path, monkeypatch):
    def refuse(path, content):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(local, "write_json", refuse)
    summary, *_ = train(Stack(1), runs(tmp_path)[:1])
    assert (summary["status"], exit_status(summary)) == ("failed", 1)
    assert "Input/output error" in summary["reason"]
    assert "LocalSink" in summary["tracking_failures"]


def test_an_error_of_whoever_waits_for_a_run_costs_the_others_nothing(tmp_path, caplog):
    def breaks(summaries):
        raise RuntimeError("nobody there")

    summaries = train(Stack(2), runs(tmp_path, on_finish=breaks))
    assert statuses(summaries) == ["finished"] * 4
    assert "nobody there" in caplog.text


def fail_in_collect(monkeypatch, error, iteration=0):
    """Raise ``error(lane)`` while the run with seed 2 collects; return how many lanes trained."""
    original, attempts = Trainer.collect, []

    def collect(trainer):
        attempts.append(len(trainer.live_lanes))
        for lane in trainer.live_lanes:
            if trainer.configs[lane].seed == 2 and trainer.iteration == iteration:
                raise error(lane)
        return original(trainer)

    monkeypatch.setattr(Trainer, "collect", collect)
    return attempts


def test_the_lane_whose_environment_is_at_fault_fails_alone(tmp_path, monkeypatch):
    told = "environment 5, step 80: reward is 'a lot'"
    attempts = fail_in_collect(monkeypatch, lambda lane: EnvironmentFault(told, lane), iteration=1)
    summaries = train(Stack(4), runs(tmp_path))
    assert statuses(summaries) == ["finished", "failed", "finished", "finished"]
    assert summaries[1]["reason"] == told
    assert exit_status(summaries[1]) == 5
    assert attempts == [4, 4, 3, 3, 3, 3]  # the others together, not in halves


def test_sys_exit_in_an_environment_is_a_failure_of_its_run(tmp_path, monkeypatch):
    fail_in_collect(monkeypatch, lambda _: SystemExit(3))
    summaries = train(Stack(2), runs(tmp_path))
    assert statuses(summaries) == ["finished", "failed", "finished", "finished"]
    assert summaries[1]["reason"] == "sys.exit(3) was called"


@pytest.mark.parametrize("error", [RuntimeError("a window"), SystemExit(1)])
def test_an_environment_that_cannot_be_closed_loses_nothing(error, tmp_path, monkeypatch):
    def close(trainer):
        raise error

    monkeypatch.setattr(Trainer, "close", close)
    (summary,) = train(Stack(1), runs(tmp_path)[:1])
    assert summary["status"] == "finished"
    assert read_summary(tmp_path / "seed_1" / "summary.json")["status"] == "finished"
    assert (tmp_path / "seed_1" / "checkpoint" / "policy.json").is_file()
    assert len(read_metrics(tmp_path / "seed_1" / "metrics.jsonl")) == 4


def test_groups_taken_from_the_queue_are_found_whatever_raises_next(tmp_path, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(stack, "over_budget", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(Stack(2), runs(tmp_path))
    summary = read_summary(tmp_path / "seed_1" / "summary.json")
    assert (summary["status"], summary["reason"]) == ("interrupted", "stopped by a signal")
