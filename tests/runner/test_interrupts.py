"""Signals and faults leave the last good policy and checkpoint, and say where they are."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.resumable import SIZES
from ppo_lab.runner import run_record
from ppo_lab.runner.exit_status import exit_status, interrupt_status
from ppo_lab.runner.group import newest_common
from ppo_lab.runner.pace import CheckpointPace
from ppo_lab.runner.resume import check_resume
from ppo_lab.runner.run import run_group, run_in_folder
from ppo_lab.runner.signals import Interrupted
from ppo_lab.tracking import read_metrics, read_summary
from ppo_lab.training.checkpoint import load_checkpoint
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.errors import ConfigError, EnvironmentFault
from tests.helpers.trainers import config as config_of
from tests.runner.test_stack import group_of

BASE = config_of(*SIZES)
AT_THE_END = dataclasses.replace(BASE.checkpoint, every_s=0.0)
AT_THE_END_CONFIG = dataclasses.replace(BASE, checkpoint=AT_THE_END)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def start(folder, config=BASE):
    folder.mkdir()
    return run_in_folder(config, folder, overrides=[])


def go_on(folder, config=BASE):
    return run_in_folder(config, folder, overrides=[], resumes=True)


@pytest.fixture
def at_iteration(monkeypatch):
    """Return a function that has ``act`` called once, in the update of an iteration."""
    update = Trainer.update

    def call(iteration, act):
        def updated(trainer, rows):
            if trainer.iteration + 1 == iteration:
                monkeypatch.setattr(Trainer, "update", update)
                act()
            return update(trainer, rows)

        monkeypatch.setattr(Trainer, "update", updated)

    return call


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_granted_after_the_iteration_with_a_checkpoint(number, tmp_path, at_iteration):
    before = signal.getsignal(number)

    def twice():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # to the process and to its group

    at_iteration(3, twice)
    with pytest.raises(Interrupted) as stopped:
        start(tmp_path / "a")
    assert interrupt_status(stopped.value) == 75
    summary = read_summary(tmp_path / "a" / "summary.json")
    assert (summary["status"], summary["env_steps"]) == ("interrupted", 3 * 32)
    assert exit_status(summary) == 75
    assert Path(summary["checkpoint"]) == tmp_path / "a" / "checkpoints" / "3"
    assert (tmp_path / "a" / "checkpoint" / "policy.json").is_file()
    assert signal.getsignal(number) == before
    summary = go_on(tmp_path / "a")
    assert (summary["status"], summary["resumed"]) == ("finished", {"iteration": 3, "num_times": 1})
    iterations = [row["iteration"] for row in read_metrics(tmp_path / "a" / "metrics.jsonl")]
    assert iterations == list(range(1, 13))


def test_a_second_signal_ends_the_run_at_once(tmp_path, at_iteration):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    at_iteration(3, twice)
    with pytest.raises(Interrupted) as stopped:
        start(tmp_path / "a", dataclasses.replace(BASE, checkpoint=AT_THE_END))
    assert interrupt_status(stopped.value) == 143
    assert len(read_metrics(tmp_path / "a" / "metrics.jsonl")) == 2
    assert exit_status(read_summary(tmp_path / "a" / "summary.json")) == 130


def common(*folders, **changes):
    """Return the iterations from which the runs in ``folders`` go on together."""
    configs = [dataclasses.replace(BASE, **changes)] * len(folders)
    return [found.state.numbers["iteration"] for found in newest_common(configs, folders)]


def test_all_runs_of_a_stack_leave_a_checkpoint_of_one_iteration(tmp_path, at_iteration):
    at_iteration(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    group = group_of(tmp_path, *(dataclasses.replace(BASE, seed=seed) for seed in (1, 2, 3)))
    with pytest.raises(Interrupted):
        run_group(group)
    assert common(*(tmp_path / f"seed_{seed}" for seed in (1, 2, 3))) == [3, 3, 3]


def test_runs_go_on_from_the_newest_iteration_that_all_of_them_have(tmp_path):
    for seed, iterations in ((1, (4, 6)), (2, (2, 4))):
        for iteration in iterations:
            changes = {"seed": seed, "total_steps": 32 * iteration, "checkpoint": AT_THE_END}
            config = dataclasses.replace(BASE, **changes)
            go_on(tmp_path / str(seed), config)
    folders = [tmp_path / "1", tmp_path / "2"]
    assert common(*folders, total_steps=32 * 10) == [4, 4]
    # The first has ended and waits for no other.
    assert common(*folders, total_steps=32 * 6) == [6, 4]
    (tmp_path / "3").mkdir()
    assert common(*folders, tmp_path / "3") == []


def test_a_fault_of_the_environment_is_one_line_and_leaves_the_policy_of_the_last_update(
    tmp_path, monkeypatch, caplog
):
    collect = Trainer.collect

    def breaks(trainer):
        if trainer.iteration == 5:
            raise EnvironmentFault("environment 1, step 80: it broke")
        return collect(trainer)

    monkeypatch.setattr(Trainer, "collect", breaks)
    summary = start(tmp_path / "a")
    assert (summary["status"], exit_status(summary)) == ("failed", 5)
    told = [record for record in caplog.records if record.levelname != "DEBUG"]
    assert [(record.message, record.exc_info) for record in told] == [(summary["reason"], None)]
    assert (tmp_path / "a" / "checkpoint" / "policy.json").is_file()
    assert Path(summary["checkpoint"]).parent == tmp_path / "a" / "checkpoints"


def test_a_disk_that_is_full_costs_a_checkpoint_and_not_the_run(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_record, "save_checkpoint", full)
    summary = start(tmp_path / "a")
    assert summary["status"] == "finished"
    assert "checkpoint" not in summary
    assert "no checkpoint now: [Errno 28] No space left on device" in caplog.text


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"lr": 0.5, "gamma": 0.9}, "gamma 0.99 -> 0.9, lr .* -> 0.5"),
        ({"total_steps": 96}, "total_steps 384 -> 96"),
        ({"seed": 2}, "seed 1 -> 2"),
        ({"total_steps": 512, "name": "more", "num_threads": 3}, None),
    ],
)
def test_a_run_goes_on_with_the_config_that_it_began_with(changes, refused, tmp_path):
    start(tmp_path / "a")
    changed = dataclasses.replace(BASE, **changes)
    if refused is None:
        check_resume(tmp_path / "a", changed)
        assert go_on(tmp_path / "a", changed)["env_steps"] == 512
        return
    with pytest.raises(ConfigError, match=f"another config: {refused};"):
        check_resume(tmp_path / "a", changed)


def test_a_run_without_a_checkpoint_cannot_be_resumed(tmp_path):
    with pytest.raises(ConfigError, match=r"^resume=.*holds no checkpoint"):
        check_resume(tmp_path, BASE)


def test_a_folder_in_which_another_process_trains_is_left_as_it_is(tmp_path):
    folder = tmp_path / "a"
    program = (
        "import sys; from pathlib import Path; from ppo_lab.runner.lock import lock_run_folder\n"
        "lock_run_folder(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        summary = run_in_folder(BASE, folder, overrides=[])
        assert summary["status"] == "failed"
        assert f"a run is training in it: process {other.pid} on " in summary["reason"]
        assert [path.name for path in folder.iterdir()] == ["run.lock"]
        other.stdin.close()
    assert run_in_folder(BASE, folder, overrides=[])["status"] == "finished"


def test_the_last_checkpoint_is_that_of_the_last_iteration(tmp_path):
    start(tmp_path / "a")
    found = load_checkpoint(tmp_path / "a")
    assert found.state.numbers["iteration"] == 12
    assert found.manifest["metrics_bytes"] == (tmp_path / "a" / "metrics.jsonl").stat().st_size


def test_checkpoints_take_two_percent_of_the_time_at_most(monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr("ppo_lab.runner.pace.time.monotonic", lambda: now_s[0])
    pace, never = CheckpointPace(60.0), CheckpointPace(0.0)

    def after(seconds):
        now_s[0] += seconds
        return pace.is_due

    assert [after(59.0), after(1.0)] == [False, True]
    with pace.writing():
        now_s[0] += 3.0  # on a slow disk
    assert [after(149.0), after(1.0)] == [False, True]
    assert not never.is_due


def test_trackers_learn_at_which_iteration_a_run_goes_on(tmp_path, monkeypatch):
    infos, begin = [], run_record.Tracker.start
    monkeypatch.setattr(
        run_record.Tracker, "start", lambda own, info: (infos.append(info), begin(own, info))
    )
    longer = dataclasses.replace(AT_THE_END_CONFIG, total_steps=2 * BASE.total_steps)
    (tmp_path / "run").mkdir()
    run_in_folder(AT_THE_END_CONFIG, tmp_path / "run", overrides=[])
    run_in_folder(longer, tmp_path / "run", overrides=[], resumes=True)
    new, resumed = infos
    assert (new.resumed_at, resumed.resumed_at) == (0, BASE.num_iterations)
    assert resumed.id == new.id
