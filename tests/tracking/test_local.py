"""The run's own files can be read back, whatever happened to the process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppo_lab.tracking import (
    Histogram,
    LocalSink,
    Progress,
    Record,
    RunInfo,
    SafeSink,
    Sink,
    Terminal,
    Tracker,
    TrackingConfig,
    TrackingMode,
    read_metrics,
    read_summary,
)


def describe(folder: Path) -> RunInfo:
    return RunInfo(folder, "id", "name", None, (), 1000, {})


def write(folder: Path, *iterations: int, value: float = 1.5) -> None:
    sink = LocalSink()
    sink.start(describe(folder))
    for iteration in iterations:
        sink.record(Record(100 * iteration, iteration, {"losses/value_loss": value}))
    sink.finish({"final_return": value}, 0)


def refuse_constant(name: str) -> float:
    raise AssertionError(f"{name} is not JSON")


def test_metrics_come_back_as_logged_and_the_file_is_strict_json(tmp_path: Path) -> None:
    sink = LocalSink()
    sink.start(describe(tmp_path))
    half: Any = np.float32(0.5)
    metrics = {"a/nan": math.nan, "a/inf": math.inf, "a/low": -math.inf, "a/np": half}
    counts: Any = np.array([1, 2])  # as a trainer may pass them
    sink.record(Record(7, 1, metrics, {"ppo/ratio": Histogram(counts, (0.0, 1.0, 2.0))}))
    path = tmp_path / "metrics.jsonl"
    (row,) = read_metrics(path)  # before finish: every record is flushed
    assert math.isnan(row.pop("a/nan"))
    assert row == {
        "global_step": 7,
        "iteration": 1,
        "a/inf": math.inf,
        "a/low": -math.inf,
        "a/np": 0.5,
        "ppo/ratio": {"counts": [1, 2], "edges": [0.0, 1.0, 2.0]},
    }
    json.loads(path.read_text(), parse_constant=refuse_constant)


def test_the_summary_comes_back_with_its_non_finite_numbers(tmp_path: Path) -> None:
    sink = LocalSink()
    sink.start(describe(tmp_path))
    summary = {"final_return": math.nan, "time": {"update_s": np.float64(2)}, "reason": None}
    sink.finish(summary, 0)
    path = tmp_path / "summary.json"
    json.loads(path.read_text(), parse_constant=refuse_constant)
    back = read_summary(path)
    assert math.isnan(back["final_return"])
    assert back["time"] == {"update_s": 2.0}
    assert back["reason"] is None


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert [row["iteration"] for row in read_metrics(path)] == [1]


def test_a_resumed_run_cuts_the_torn_line_and_replaces_repeated_iterations(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"global_st')
    write(tmp_path, 2, 3, 4, value=9.0)  # from a checkpoint after iteration 1
    rows = read_metrics(path)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert [row["losses/value_loss"] for row in rows] == [1.5, 9.0, 9.0, 9.0]


class Broken(Sink):
    """Raises in the named methods, and records calls."""

    def __init__(self, *broken: str, error: type[BaseException] = OSError) -> None:
        self.broken, self.error = broken, error
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise self.error("no space\nleft")

    def start(self, run: object) -> None:
        self._call("start")

    def record(self, record: object) -> None:
        self._call("record")

    def finish(self, summary: object, exit_code: object) -> None:
        self._call("finish")


def use(guard: SafeSink, folder: Path) -> None:
    guard.start(describe(folder))
    for iteration in range(1, 6):
        guard.record(Record(iteration, iteration, {}))
    guard.finish({}, 0)


def test_failing_records_are_counted_logged_once_and_dropped_after_three(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Broken("record")
    guard = SafeSink(sink)
    use(guard, tmp_path)
    assert sink.calls == ["start", "record", "record", "record", "finish"]
    assert guard.num_failures == 3
    assert guard.reason == "record: OSError: no space left"
    assert len(caplog.records) == 1
    assert "Broken failed" in caplog.text


def test_a_sink_that_failed_to_start_is_not_called_again(tmp_path: Path) -> None:
    sink = Broken("start")
    guard = SafeSink(sink)
    use(guard, tmp_path)
    assert sink.calls == ["start"]
    assert guard.num_failures == 1


def test_a_failing_finish_is_counted(tmp_path: Path) -> None:
    guard = SafeSink(Broken("finish"))
    use(guard, tmp_path)
    assert guard.num_failures == 1
    assert guard.reason == "finish: OSError: no space left"


def test_an_interrupt_propagates(tmp_path: Path) -> None:
    guard = SafeSink(Broken("record", error=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        use(guard, tmp_path)
    assert guard.num_failures == 0


def test_a_tracker_survives_losing_its_folder_and_says_so_in_failures(tmp_path: Path) -> None:
    config = TrackingConfig(mode=TrackingMode.disabled)
    tracker = Tracker(config, tmp_path / "outputs", Progress(Terminal.none))
    tracker.start(describe(tmp_path / "gone"))
    tracker.record(Record(1, 1, {}))
    tracker.finish({}, 0)
    assert tracker.link is None
    assert list(tracker.failures) == ["LocalSink"]
    assert "FileNotFoundError" in tracker.failures["LocalSink"]


def test_a_tracker_writes_the_failure_of_another_sink_into_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrackingConfig(mode=TrackingMode.disabled)
    tracker = Tracker(config, tmp_path / "outputs", Progress(Terminal.none))
    monkeypatch.setattr(tracker, "_wandb", SafeSink(Broken("finish")))
    tracker.start(describe(tmp_path))
    tracker.finish({"final_return": 1.0}, 0)
    summary = read_summary(tmp_path / "summary.json")
    assert summary["final_return"] == 1.0
    assert summary["tracking_failures"] == {
        "Broken": "1 failed, first finish: OSError: no space left"
    }
