"""Trackers beside W&B: a CSV table and TensorBoard's event file."""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppo_lab.tracking import Histogram, Progress, Record, RunInfo, Sink, Terminal, Tracker
from ppo_lab.tracking.config import TrackingConfig, TrackingMode
from ppo_lab.tracking.csv_sink import CSV_FILE, CsvSink
from ppo_lab.tracking.tensorboard_sink import TensorBoardSink
from ppo_lab.utils.errors import ConfigError

RETURN = "charts/episodic_return"


def record(iteration: int, **metrics: float) -> Record:
    histograms = {"ppo/ratio": Histogram([1.0, 3.0], [0.5, 1.0, 2.0])}
    return Record(100 * iteration, iteration, {RETURN: iteration + 0.5, **metrics}, histograms)


def info(folder: Path, resumed_at: int = 0) -> RunInfo:
    config = {"lr": 1e-3, "network": {"hidden": [64, 64], "path": None, "api_key": "canary"}}
    return RunInfo(folder, "id", "name", None, (), 400, config, resumed_at=resumed_at)


def write(sink: Sink, folder: Path, iterations: range, resumed_at: int = 0) -> Sink:
    sink.start(info(folder, resumed_at))
    for iteration in iterations:
        sink.record(record(iteration, **({"late": math.nan} if iteration == 3 else {})))
    return sink


def cells(folder: Path) -> list[dict[str, str]]:
    with (folder / CSV_FILE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_column_that_appears_later_is_empty_in_the_rows_before_and_after(tmp_path: Path) -> None:
    write(CsvSink(), tmp_path, range(1, 5))
    rows = cells(tmp_path)
    assert [row[RETURN] for row in rows] == ["1.5", "2.5", "3.5", "4.5"]
    assert [row["global_step"] for row in rows] == ["100", "200", "300", "400"]
    assert [row["late"] for row in rows] == ["", "", "nan", ""]
    assert "ppo/ratio" not in rows[0]


def test_a_resumed_run_replaces_the_rows_after_its_checkpoint(tmp_path: Path) -> None:
    write(CsvSink(), tmp_path, range(1, 5))
    write(CsvSink(), tmp_path, range(3, 4), resumed_at=2)
    assert [row["iteration"] for row in cells(tmp_path)] == ["1", "2", "3"]
    write(CsvSink(), tmp_path, range(1, 2))  # a new attempt, from the first step
    assert [row["iteration"] for row in cells(tmp_path)] == ["1"]


@pytest.fixture
def events(tmp_path: Path) -> Iterator:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read() -> object:
        accumulator = reader.EventAccumulator(str(tmp_path))
        accumulator.Reload()
        return accumulator

    return read


def test_tensorboard_has_scalars_by_steps_histograms_and_the_config_without_secrets(
    tmp_path: Path, events: Iterator
) -> None:
    sink = write(TensorBoardSink(), tmp_path, range(1, 4))
    sink.describe({"num_parameters": {"total": 9}})
    sink.finish({"final_return": 3.5, "best_return": None}, 0)
    read = events()
    assert [(e.step, e.value) for e in read.Scalars(RETURN)] == [(100, 1.5), (200, 2.5), (300, 3.5)]
    assert math.isnan(read.Scalars("late")[0].value)
    histogram = read.Histograms("ppo/ratio")[0].histogram_value
    assert (histogram.num, histogram.bucket_limit, histogram.bucket) == (
        4.0,
        [1.0, 2.0],
        [1.0, 3.0],
    )
    assert histogram.sum == pytest.approx(1 * 0.75 + 3 * 1.5)
    assert read.Scalars("final_return")[0].value == 3.5
    (file,) = tmp_path.glob("events.*")
    content = file.read_bytes()
    for expected in (b"network.hidden", b"num_parameters.total", b"_hparams_/session_start_info"):
        assert expected in content
    assert b"canary" not in content


def test_tensorboard_hides_the_steps_that_a_resumed_run_repeats(
    tmp_path: Path, events: Iterator
) -> None:
    write(TensorBoardSink(), tmp_path, range(1, 5)).finish({}, 1)
    write(TensorBoardSink(), tmp_path, range(3, 6), resumed_at=2).finish({}, 0)
    read = events()
    assert [event.step for event in read.Scalars(RETURN)] == [100, 200, 300, 400, 500]


def test_the_tracker_sends_to_what_was_chosen(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = TrackingConfig(mode=TrackingMode.disabled, csv=True, tensorboard=True, log_every=2)
    tracker = Tracker(config, tmp_path, Progress(Terminal.none))
    tracker.start(info(tmp_path))
    for iteration in range(1, 6):
        tracker.record(record(iteration))
    tracker.finish({"status": "finished"}, 0)
    assert [row["iteration"] for row in cells(tmp_path)] == ["1", "2", "4", "5"]
    assert len([*tmp_path.glob("events.*")]) == 1
    assert "tracking_failures" not in tracker.notes


def test_tensorboard_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tracking\.tensorboard=true.*ppo_lab\[tensorboard\]"):
        TrackingConfig(tensorboard=True).check()
