"""What the summary says about memory and bus."""

import dataclasses

import pytest

from ppo_lab.devices.pcie import BusLimit
from ppo_lab.devices.placement import Traffic
from ppo_lab.devices.trace import Copies, DeviceUse
from ppo_lab.forecasting.categories import Category
from ppo_lab.forecasting.counting import counted_trainer, ledger_of
from ppo_lab.forecasting.summary import device_section, memory_section
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import config, train_to_end

GIB = 1024**3


def test_the_bus_is_summed_over_the_run_and_compared_with_its_limit():
    trainer = Trainer([config()])
    trainer.placement.traffic = Traffic(700, 300)
    assert device_section(trainer) == {"pcie": {"h2d_bytes": 700, "d2h_bytes": 300}}
    trainer.meters.bus = BusLimit(60e9, 50e9)
    limits = {"h2d_limit_gb_per_s": 60.0, "d2h_limit_gb_per_s": 50.0}
    traffic = {"h2d_bytes": 700, "d2h_bytes": 300}
    assert device_section(trainer) == {"pcie": traffic | limits}
    up, down = Copies(30_000_000_000, 4, 1.0), Copies(0, 0, 0.0)
    trainer.meters.use = DeviceUse(2.0, 3, 0.25, 0.5, 0.25, up, down)
    trainer.meters.used_phases = ("update",)
    window = {"h2d_gb_per_s": 30.0, "h2d_limit_frac": 0.5, "pageable_bytes": 4.0}
    assert device_section(trainer) == {
        "pcie": traffic | limits | window,
        "perf": {
            "kernel_busy_frac": 0.25,
            "exposed_copy_frac": 0.5,
            "idle_no_copy_frac": 0.25,
            "window_s": 2.0,
            "window_phases": ["update"],
        },
    }


def test_a_counted_run_says_its_peak_by_category_and_network():
    base = config("memory=offloaded_optimizer", "num_epochs=1")
    trainer = counted_trainer([dataclasses.replace(base, total_steps=base.num_rows)])
    train_to_end(trainer)
    section = memory_section(trainer)
    ledger = section["ledger"]
    assert sum(ledger["categories_gib"].values()) == ledger["peak_gib"] > 0.0
    # Two networks, in buckets of 512 B: within one of them of 4 B a parameter.
    actor, critic = (sum(p.numel() for p in g) for g in trainer.model.groups().values())
    weights = [
        round(ledger["networks_gib"][f"weights_{name}"] * GIB) for name in ("actor", "critic")
    ]
    assert sum(weights) == pytest.approx(4 * (actor + critic), abs=512 * 16)
    assert ledger["moment"].split(":")[0] in ledger["phases_gib"]
    # The host holds weights, gradients and Adam's two moments: 4 B of each a parameter, or more.
    assert ledger["categories_gib"]["optimizer"] == 0.0
    host_gib = ledger["host_pinned_gib"] + ledger["host_pageable_gib"]
    assert host_gib * GIB >= 16 * (actor + critic)
    assert section["measured"].keys() == {"host_gib"}


def test_the_first_record_of_a_counted_run_has_the_ledger_and_later_ones_have_not():
    records = []
    base = config("num_epochs=1")
    base = dataclasses.replace(base, total_steps=2 * base.num_rows)
    trainer = counted_trainer([base], lambda _, record: records.append(record.metrics))
    train_to_end(trainer)
    first, second = ({k for k in m if k.startswith("memory/")} for m in records)
    assert second == set()
    assert first == {
        "memory/ledger_gib",
        *(f"memory/ledger_{category.value}_gib" for category in Category),
    }
    assert records[0]["memory/ledger_gib"] * GIB == ledger_of(trainer).peak.total
    # What bounds the profiled window: every phase but the building, in order.
    assert list(trainer.meters.num_operations) == ["rollout", "advantages", "update", "diagnostics"]
    assert min(trainer.meters.num_operations.values()) > 0
