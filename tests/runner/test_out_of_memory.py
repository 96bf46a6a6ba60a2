"""A run whose memory is full: told in one line, its memory freed, the next job of the grid runs."""

import csv
import gc
import json
import re
import weakref

import pytest
import torch

from ppo_lab.config.run import Config
from ppo_lab.forecasting import forecast as forecasting
from ppo_lab.forecasting import summary as memory_summary
from ppo_lab.forecasting.budget import Change
from ppo_lab.forecasting.forecast import forecast
from ppo_lab.grids.results import RESULTS_FILE
from ppo_lab.runner import stack
from ppo_lab.runner.run import run_in_folder
from ppo_lab.tracking import read_metrics
from ppo_lab.training.trainer import Trainer
from tests.helpers.commands import ppo_lab
from tests.helpers.trainers import config

GIB = 1024**3
CUDA_MESSAGE = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ..."
THREE_ITERATIONS = ("total_steps=3072", "tracking.mode=disabled", "tracking.terminal=none")


@pytest.fixture
def full(monkeypatch):
    """Return a function that fills the memory of every run in a verb, in its second iteration.

    What it returns collects weak references to the weights and a large temporary of those runs.
    """

    def fill(verb="update", error=None, iteration=1):
        error = error or torch.OutOfMemoryError(CUDA_MESSAGE)
        alive = []
        original = getattr(Trainer, verb)

        def filled(trainer, *args):
            if trainer.iteration < iteration:
                return original(trainer, *args)
            temporary = torch.zeros(1000)
            alive.extend(map(weakref.ref, [temporary, *trainer.model.parameters()]))
            raise error

        monkeypatch.setattr(Trainer, verb, filled)
        return alive

    return fill


def run(folder, *overrides):
    folder.mkdir()
    return run_in_folder(config(*THREE_ITERATIONS, *overrides), folder, overrides=overrides)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


CHANGES = [
    Change(("memory=parked",), total=GIB // 8, alters="separate clipping"),
    Change(("memory.num_micro_batches=2",), total=GIB, alters=""),
]


@pytest.fixture(autouse=True)
def advised(monkeypatch):
    """Spare the forecasts of every change; what is advised is the budget's to test."""
    monkeypatch.setattr(memory_summary, "advice", lambda config: CHANGES)


def test_a_full_device_is_a_result_and_what_was_learnt_before_it_stays(full, tmp_path):
    full("update")
    summary = run(tmp_path / "a")
    assert summary["status"] == "out_of_memory"
    planned = forecast(config(*THREE_ITERATIONS))
    assert summary["reason"] == (
        f"the device is out of memory in update: forecast {planned.allocated / GIB:.2f} GiB, "
        "less with memory=parked: 0.12 GiB (separate clipping)"
    )
    assert summary["env_steps"] == 1024
    assert summary["final_return"] > 0
    assert len(read_metrics(tmp_path / "a" / "metrics.jsonl")) == 1
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["status"] == "out_of_memory"


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: ...")],
)
def test_a_full_host_is_told_apart(full, tmp_path, error):
    full("collect", error)
    summary = run(tmp_path / "a")
    assert summary["status"] == "out_of_memory"
    assert re.match(r"the host is out of memory in rollout: peak \d+\.\d\d GiB", summary["reason"])


def test_other_errors_are_failures_still(full, tmp_path):
    full("update", RuntimeError("shape mismatch"))
    summary = run(tmp_path / "a")
    assert (summary["status"], summary["stopped_in"]) == ("failed", "update")


def test_the_advice_is_the_change_that_saves_most_of_those_that_fit(full, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_summary, "advice", lambda config: CHANGES[::-1])
    monkeypatch.setattr(Config, "_check_device", lambda config: None)  # an emulated card on a CPU
    full("update")
    reason = run(tmp_path / "a", "vram_limit_gib=0.5")["reason"]
    assert reason.endswith("limit 0.5 GiB, less with memory=parked: 0.12 GiB (separate clipping)")
    reason = run(tmp_path / "b", "vram_limit_gib=0.01")["reason"]  # nothing fits
    assert reason.endswith("limit 0.01 GiB, less with memory.num_micro_batches=2: 1.00 GiB")


def test_a_run_that_cannot_be_forecast_is_told_of_all_the_same(full, tmp_path, monkeypatch):
    def refuse(config):
        raise NotImplementedError("an operation without a shape")

    monkeypatch.setattr(forecasting, "forecast", refuse)
    full("update")
    assert run(tmp_path / "a")["reason"] == "the device is out of memory in update"


def test_a_job_whose_forecast_is_over_budget_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(stack, "over_budget", lambda config: "needs 9 GiB, budget is 8")
    monkeypatch.setattr(Trainer, "iterate", lambda trainer: pytest.fail("it was begun"))
    summary = run(tmp_path / "a")
    assert (summary["status"], summary["reason"]) == ("over_budget", "needs 9 GiB, budget is 8")
    saved = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert saved["status"] == "over_budget"


def test_a_run_within_its_budget_is_begun(tmp_path):
    assert run(tmp_path / "a", "vram_budget_gib=4")["status"] == "finished"


def test_a_run_that_cannot_even_start_is_told_so(monkeypatch, tmp_path):
    def refuse(*_):
        raise torch.OutOfMemoryError(CUDA_MESSAGE)

    monkeypatch.setattr(Trainer, "_build_model", refuse)
    summary = run(tmp_path / "a")
    assert summary["reason"].startswith("the device is out of memory in startup")


@pytest.mark.parametrize("iteration", [0, 1])
@pytest.mark.parametrize("profile", ["never", "always"])
def test_nothing_of_a_full_run_is_left_and_the_next_job_runs(
    profile, iteration, full, tmp_path, monkeypatch
):
    alive = full("update", iteration=iteration)
    gc.disable()  # what is free must have been freed, not found by chance
    try:
        assert run(tmp_path / "a", f"profile={profile}")["status"] == "out_of_memory"
        assert len(alive) > 4
        assert [reference() for reference in alive] == [None] * len(alive)
    finally:
        gc.enable()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path / "b")["status"] == "finished"


# The first job's update runs out of memory; later ones train.
PROGRAM = """
import torch
from ppo_lab.forecasting import summary as memory_summary
from ppo_lab.__main__ import main
from ppo_lab.training.trainer import Trainer
update = Trainer.update
def filled(trainer, rows):
    if trainer.config.seed == 1 and trainer.collector.num_dry_steps is None:  # not a dry run
        raise torch.OutOfMemoryError("CUDA out of memory")
    return update(trainer, rows)
Trainer.update = filled
memory_summary.advice = lambda config: []
main()
"""
QUICK = ("network=tiny", "tracking=local", "device=cpu", "total_steps=1024")


def command(folder, *arguments):
    return ppo_lab(folder, *QUICK, *arguments, program=PROGRAM)


def test_a_single_run_that_is_out_of_memory_exits_with_status_3(tmp_path):
    done = command(tmp_path)
    assert done.returncode == 3, done.stderr
    assert "the device is out of memory in update" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr


def test_a_grid_goes_on_after_a_job_that_is_out_of_memory(tmp_path):
    done = command(tmp_path, "seed=1,2", "-m")
    assert done.returncode == 1, done.stderr
    (grid,) = (tmp_path / "outputs" / "grids").iterdir()
    with (grid / RESULTS_FILE).open() as file:
        status = {row["seed"]: row["status"] for row in csv.DictReader(file)}
    assert status == {"1": "out_of_memory", "2": "finished"}
    assert "job 0 out_of_memory: the device is out of memory in update" in done.stdout
