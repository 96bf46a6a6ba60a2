"""Schedules after a lane's end, what a stack shares, and measurements that must agree."""

import dataclasses
import math

import pytest
import torch

from ppo_lab.config.run import Schedule
from ppo_lab.training.lane_values import LaneValues
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.rng import Stream, fold_in, lane_keys
from tests.helpers.trainers import CPU, TWENTY_STEPS, config, lanes_of

LINEAR = {"lr": 1.0, "lr_schedule": Schedule.linear, "epsilon_schedule": Schedule.linear}


def values_of(*changes, total_steps=4096):
    base = dataclasses.replace(config(), total_steps=total_steps)  # of 1024 each
    return LaneValues(lanes_of(base, *changes), CPU, torch.float64)


def test_after_its_last_iteration_a_lane_keeps_the_last_values():
    lanes = values_of(LINEAR)
    found = [lanes.hyperparameters(i) for i in range(7)]
    assert [each.lr.item() for each in found] == [1.0, 0.75, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert [each.clip.high.item() for each in found][-2:] == pytest.approx([0.05, 0.05])


def test_a_replaced_lane_counts_its_iterations_and_its_keys_from_its_beginning():
    lanes = values_of(LINEAR, LINEAR)
    base = dataclasses.replace(config(), total_steps=2048)
    (new,) = lanes_of(base, {**LINEAR, "seed": 7, "dual_clip": 3.0})
    lanes.replace(torch.tensor([1]), [new], 3)
    found = lanes.hyperparameters(4)
    assert found.lr.tolist() == [0.25, 0.5]
    assert found.dual_clip.tolist() == [math.inf, 3.0]
    assert found.value_epsilon is None
    for stream in (Stream.ACTION, Stream.SHUFFLE):
        expected = [fold_in(lane_keys(torch.tensor([s]), stream), i) for s, i in ((1, 4), (7, 1))]
        assert torch.equal(lanes.keys(stream, 4), torch.cat(expected))


def test_a_frozen_lane_stands_still_and_the_others_go_on():
    lanes = values_of({"lr": 1.0}, {"lr": 2.0}, {"lr": 3.0})
    lanes.freeze_lane(1)
    assert lanes.hyperparameters(0).lr.tolist() == [1.0, 0.0, 3.0]


def test_steps_per_second_are_the_live_lanes_steps_by_the_recorded_times():
    records = {}
    trainer = Trainer(
        lanes_of(config(*TWENTY_STEPS), {}, {"seed": 2}, {"seed": 3}), records.__setitem__
    )
    trainer.retire_lane(2)
    trainer.iterate()
    trainer.retire_lane(1)
    records.clear()
    trainer.iterate()
    assert records.keys() == {0}
    metrics = records[0].metrics
    rows = 1024
    assert trainer.num_live_steps == 3 * rows  # of two lanes, then of one
    steps = metrics["charts/SPS"] * metrics["time/elapsed_s"]
    assert steps == pytest.approx(3 * rows, rel=1e-9)
    for phase in ("rollout", "update"):
        per_s, seconds = metrics[f"perf/SPS_{phase}"], metrics[f"time/{phase}_s"]
        assert per_s * seconds == pytest.approx(rows, rel=1e-9)
    assert 0.0 < metrics["time/elapsed_s"] < 600.0
    assert metrics["time/env_s"] < metrics["time/rollout_s"]
    phases = trainer.phase_seconds()
    assert list(phases)[:2] == ["env", "rollout"]
    assert phases.keys() >= {"advantages", "update", "diagnostics", "record"}
    assert min(phases.values()) > 0.0
    assert sum(phases.values()) <= trainer.elapsed_s  # they do not overlap
    assert not any(name.startswith(("memory/", "pcie/")) for name in metrics)  # on the CPU


def test_compilation_is_decided_by_the_sum_of_what_the_lanes_will_train(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "ppo_lab.training.trainer.should_compile", lambda *args: bool(seen.append(args))
    )
    configs = lanes_of(config(), {"total_steps": 1024}, {"total_steps": 3072, "seed": 2})
    Trainer(configs)
    Trainer(configs, compiles=False)
    assert seen == [(configs[0], 2, 4096)]
