"""Samples of texts: in a file beside the metrics, and in W&B."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from ppo_lab.tracking import (
    LocalSink,
    Record,
    TrackingConfig,
    TrackingMode,
    WandbSink,
    read_metrics,
)
from ppo_lab.tracking.local import METRICS_FILE, SAMPLES_FILE
from tests.helpers.local_files import Broken, describe, files_tracker, no_file_above


def sample_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / SAMPLES_FILE).read_text().splitlines()]


def with_samples(iteration: int) -> Record:
    samples = [(f"text {iteration} .", 0.5), ("naïve .", math.nan)]
    return Record(100 * iteration, iteration, {}, samples=samples)


def test_samples_come_back_with_their_iteration_and_rewards(tmp_path: Path) -> None:
    sink = LocalSink()
    sink.start(describe(tmp_path))
    assert not (tmp_path / SAMPLES_FILE).exists()  # most runs have none
    sink.record(with_samples(1))
    sink.record(Record(200, 2, {}))
    assert sample_rows(tmp_path) == [
        {
            "iteration": 1,
            "global_step": 100,
            "texts": ["text 1 .", "naïve ."],
            "rewards": [0.5, "NaN"],
        }
    ]
    assert [row["iteration"] for row in read_metrics(tmp_path / METRICS_FILE)] == [1, 2]


@pytest.mark.parametrize(("resumed_at", "kept"), [(0, []), (2, [1, 2]), (9, [1, 2, 3])])
def test_samples_are_cut_back_to_where_a_run_goes_on(
    tmp_path: Path, resumed_at: int, kept: list[int]
) -> None:
    sink = LocalSink()
    sink.start(describe(tmp_path))
    for iteration in (1, 2, 3):
        sink.record(with_samples(iteration))
    path = tmp_path / SAMPLES_FILE
    path.write_bytes(path.read_bytes() + b'{"iterat')  # of a killed run
    again = LocalSink()
    again.start(dataclasses.replace(describe(tmp_path), resumed_at=resumed_at))
    again.record(with_samples(resumed_at + 1))
    assert [row["iteration"] for row in sample_rows(tmp_path)] == [*kept, resumed_at + 1]


def test_samples_wait_for_space_as_metrics_do(tmp_path: Path) -> None:
    sink = LocalSink()
    sink.start(describe(tmp_path))
    sink.record(with_samples(1))
    size = (tmp_path / SAMPLES_FILE).stat().st_size
    with no_file_above(size + 3):  # the metrics' rows are shorter and may fit
        for iteration in (2, 3):
            with contextlib.suppress(OSError):
                sink.record(with_samples(iteration))
    sink.finish({}, 0)
    assert [row["iteration"] for row in sample_rows(tmp_path)] == [1, 2, 3]
    assert [row["iteration"] for row in read_metrics(tmp_path / METRICS_FILE)] == [1, 2, 3]


def test_records_with_samples_go_to_every_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(sink := Broken(), "record", lambda record: seen.append(record.iteration))
    tracker = files_tracker(tmp_path, sink, log_every=10)
    for iteration in range(1, 8):
        tracker.record(with_samples(iteration) if iteration == 4 else Record(1, iteration, {}))
    tracker.finish({}, 0)
    assert seen == [1, 4, 7]


def test_wandb_gets_samples_as_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []

    class Run:
        def log(self, row: dict[str, Any], **_: object) -> None:
            rows.append(row)

    sink = WandbSink(TrackingConfig(mode=TrackingMode.offline), tmp_path)
    monkeypatch.setattr(sink, "_run", Run())
    sink.record(Record(7, 1, {"a/b": 1.0}))
    sink.record(dataclasses.replace(with_samples(2), samples=[("one .", 0.5), ("two .", 1.0)]))
    assert "samples" not in rows[0]
    assert rows[1]["samples"].columns == ["text", "reward"]
    assert rows[1]["samples"].data == [["one .", 0.5], ["two .", 1.0]]
