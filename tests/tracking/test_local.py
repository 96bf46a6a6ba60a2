"""The run's own files can be read back, whatever happened to the process."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppo_lab.tracking import (
    Histogram,
    LocalSink,
    Record,
    SafeSink,
    cut_metrics,
    local,
    read_metrics,
    read_summary,
)
from ppo_lab.tracking.local import METRICS_FILE
from ppo_lab.utils import json_files
from tests.helpers.local_files import Broken, describe, files_tracker, no_file_above


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


@pytest.mark.parametrize("spare_bytes", [0, 30, 100])  # no room, half a row, one row and a half
def test_rows_wait_while_the_disk_is_full_and_none_is_lost_or_doubled(
    tmp_path: Path, spare_bytes: int
) -> None:
    tracker = files_tracker(tmp_path)
    path = tmp_path / METRICS_FILE

    def record(first: int, last: int) -> None:
        for iteration in range(first, last + 1):
            tracker.record(Record(iteration, iteration, {"losses/value_loss": 0.5}))

    record(1, 3)
    with no_file_above(path.stat().st_size + spare_bytes):
        record(4, 7)
        assert tracker.lost is not None
    record(8, 10)
    assert tracker.lost is None
    tracker.finish({}, 0)
    rows = [json.loads(line)["iteration"] for line in path.read_text().splitlines()]
    assert rows == list(range(1, 11))
    assert "tracking_failures" not in read_summary(tmp_path / "summary.json")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EMFILE])
def test_the_file_may_be_unwritable_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(local.os, "open", refuse)
        tracker = files_tracker(tmp_path)
        tracker.record(Record(1, 1, {}))
        with pytest.raises(OSError, match=os.strerror(code)):
            tracker.sync()
    tracker.record(Record(2, 2, {}))
    assert [row["iteration"] for row in read_metrics(tmp_path / METRICS_FILE)] == [1, 2]


def test_the_end_of_a_run_waits_for_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    tracker, pauses = files_tracker(tmp_path), []
    with monkeypatch.context() as patch:
        patch.setattr(local.os, "pwrite", full)
        tracker.record(Record(1, 1, {}))

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                patch.undo()

        patch.setattr(json_files.time, "sleep", pause)
        tracker.finish({"final_return": 1.0}, 0)
    assert len(pauses) == 3
    assert tracker.lost is None
    assert len(read_metrics(tmp_path / METRICS_FILE)) == 1


def test_rows_and_summary_that_stay_unwritable_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_patience_s", [0.0])
    tracker = files_tracker(tmp_path)
    (tmp_path / "summary.json").mkdir()
    tracker.record(Record(1, 1, {}))
    tracker.finish({}, 0)
    assert tracker.lost is not None
    assert tracker.lost.startswith("finish: IsADirectoryError")
    assert list(tracker.notes["tracking_failures"]) == ["LocalSink"]
    assert len(read_metrics(tmp_path / METRICS_FILE)) == 1


def test_a_sink_holds_no_descriptor_between_writes(tmp_path: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    sinks = [LocalSink() for _ in range(3)]
    for lane, sink in enumerate(sinks):
        (tmp_path / str(lane)).mkdir()
        sink.start(describe(tmp_path / str(lane)))
        sink.record(Record(1, 1, {}))
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_a_metrics_file_that_was_removed_begins_again_without_a_hole(tmp_path: Path) -> None:
    tracker = files_tracker(tmp_path)
    tracker.record(Record(1, 1, {}))
    (tmp_path / METRICS_FILE).unlink()
    tracker.record(Record(2, 2, {}))
    assert [row["iteration"] for row in read_metrics(tmp_path / METRICS_FILE)] == [2]


def test_metrics_are_cut_back_to_a_checkpoint_and_continued(tmp_path: Path) -> None:
    tracker = files_tracker(tmp_path)
    tracker.record(Record(1, 1, {}))
    position = tracker.sync()
    for iteration in (2, 3):
        tracker.record(Record(iteration, iteration, {"losses/value_loss": 1.0}))
    cut_metrics(tmp_path, position)
    write(tmp_path, 2)
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2]
    assert json.loads(lines[1])["losses/value_loss"] == 1.5


@pytest.mark.parametrize("position", [10, 10_000])  # inside a row, and beyond the end
def test_metrics_are_not_cut_where_no_row_ends(tmp_path: Path, position: int) -> None:
    write(tmp_path, 1, 2)
    before = (tmp_path / METRICS_FILE).read_bytes()
    with pytest.raises(ValueError, match=f"no row ends after {position} of its"):
        cut_metrics(tmp_path, position)
    assert (tmp_path / METRICS_FILE).read_bytes() == before


def test_every_tenth_record_goes_to_the_other_sinks_and_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(sink := Broken(), "record", lambda record: seen.append(record.iteration))
    tracker = files_tracker(tmp_path, sink, log_every=10)
    for iteration in range(1, 26):
        tracker.record(Record(iteration, iteration, {}))
    tracker.finish({}, 0)
    assert seen == [1, 10, 20, 25]
    assert len(read_metrics(tmp_path / METRICS_FILE)) == 25


def test_evaluations_go_to_every_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(sink := Broken(), "record", lambda record: seen.append(record.iteration))
    tracker = files_tracker(tmp_path, sink, log_every=10)
    for iteration in range(1, 9):
        metrics = {"eval/return": 1.0} if iteration in (4, 8) else {}
        tracker.record(Record(iteration, iteration, metrics))
    tracker.finish({}, 0)
    assert seen == [1, 4, 8]


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
    tracker = files_tracker(tmp_path / "gone")
    tracker.record(Record(1, 1, {}))
    tracker.finish({}, 0)
    assert tracker.link is None
    assert list(tracker.notes) == ["tracking_failures"]
    assert list(tracker.notes["tracking_failures"]) == ["LocalSink"]
    assert "FileNotFoundError" in tracker.notes["tracking_failures"]["LocalSink"]


def test_a_tracker_writes_the_failure_of_another_sink_into_the_summary(tmp_path: Path) -> None:
    tracker = files_tracker(tmp_path, Broken("finish"))
    tracker.finish({"final_return": 1.0}, 0)
    summary = read_summary(tmp_path / "summary.json")
    assert summary["final_return"] == 1.0
    assert summary["tracking_failures"] == {
        "Broken": "1 failed, first finish: OSError: no space left"
    }
