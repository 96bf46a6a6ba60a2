"""Cores by affinity, by cgroup quota, among siblings, and beside other busy processes."""

import os

import pytest

from ppo_lab.utils import cores
from ppo_lab.utils.cores import divide_cores, idle_cores, usable_cores


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Eight cores and no quota; return a function that writes a file of the cgroup."""
    monkeypatch.setattr(cores, "_affinity", lambda: set(range(8)))
    monkeypatch.setattr(cores, "_CGROUP", tmp_path)
    monkeypatch.setattr(cores, "_NUM_SHARING", 1)

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    return write


@pytest.mark.parametrize(
    ("text", "count"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8), ("", 8)],
)
def test_a_quota_of_the_cgroup_limits_the_cores(text, count, machine):
    machine("cpu.max", text)
    assert usable_cores() == count


@pytest.mark.parametrize(("quota", "count"), [("-1", 8), ("300000", 3)])
def test_so_does_one_of_the_older_cgroups(quota, count, machine):
    machine("cpu/cpu.cfs_quota_us", quota)
    machine("cpu/cpu.cfs_period_us", "100000")
    assert usable_cores() == count


def test_workers_divide_the_cores_among_them():
    divide_cores(3)
    assert usable_cores() == idle_cores() == 2
    divide_cores(100)
    assert usable_cores() == 1


@pytest.mark.parametrize(("busy_s", "count"), [(0.0, 8), (0.15, 5), (0.4, 1), (9.0, 1)])
def test_busy_cores_are_left_to_others(busy_s, count, monkeypatch):
    ticks = iter([1000, 1000 + round(busy_s * os.sysconf("SC_CLK_TCK"))])
    monkeypatch.setattr(cores, "_busy_ticks", lambda: next(ticks))
    assert idle_cores() == count


def test_without_an_affinity_all_cores_count(monkeypatch):
    monkeypatch.undo()
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(cores, "_quota", lambda folder: float("inf"))
    assert usable_cores() == 6


def test_this_machine_tells_how_busy_it_is():
    assert cores._busy_ticks() is None or cores._busy_ticks() > 0
