"""The run's own files: ``metrics.jsonl``, a line per record, and ``summary.json``.

They are written whatever W&B does, and the report reads nothing else. NaN and infinity are
strings in them (see ``strict_json``); the readers here give them back as floats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ppo_lab.tracking.base import Record, RunInfo, Sink
from ppo_lab.utils.json_files import restore, strict, write_json

__all__ = ["METRICS_FILE", "SUMMARY_FILE", "LocalSink", "read_metrics", "read_summary"]

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"


class LocalSink(Sink):
    """Appends each record to ``metrics.jsonl`` and writes ``summary.json`` at the end."""

    def __init__(self) -> None:
        """Open nothing yet: the folder arrives with ``start``."""
        self._folder: Path | None = None
        self._file: TextIO | None = None

    def start(self, run: RunInfo) -> None:
        """Open the run's file; a resumed run goes on where its last whole line ended."""
        path = run.folder / METRICS_FILE
        if path.exists():
            _cut_torn_line(path)
        self._folder = run.folder
        self._file = path.open("a", encoding="utf-8")

    def record(self, record: Record) -> None:
        """Append one line and hand it to the system, so that a killed run keeps it."""
        assert self._file is not None, "record before start"
        self._file.write(json.dumps(_row(record), allow_nan=False) + "\n")
        self._file.flush()

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:  # noqa: ARG002
        """Close the file and write the summary whole."""
        assert self._folder is not None, "finish before start"
        if self._file is not None:
            self._file.close()
            self._file = None
        write_json(self._folder / SUMMARY_FILE, strict(summary))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl`` as they were logged, in order of iteration.

    A torn last line (the run was killed, or is writing now) is left out. A run resumed from an
    older checkpoint repeats iterations: its later lines replace the earlier ones.
    """
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        row = restore(json.loads(line))
        while rows and rows[-1]["iteration"] >= row["iteration"]:
            rows.pop()
        rows.append(row)
    return rows


def read_summary(path: Path) -> dict[str, Any]:
    """Return a ``summary.json`` with its non-finite numbers restored."""
    summary: dict[str, Any] = restore(json.loads(path.read_bytes()))
    return summary


def _row(record: Record) -> dict[str, Any]:
    histograms = {
        name: {"counts": _numbers(histogram.counts), "edges": _numbers(histogram.edges)}
        for name, histogram in record.histograms.items()
    }
    metrics = zip(record.metrics, _numbers([*record.metrics.values()]))
    axes = {"global_step": record.global_step, "iteration": record.iteration}
    return axes | dict(metrics) | histograms


def _numbers(values: Sequence[float]) -> Sequence[Any]:
    """Return what ``strict`` would, at a tenth of the price where all numbers are plain and finite.

    So is their sum then; one that is not tells of others, or was too large.
    """
    total = sum(values)
    if isinstance(values, list) and type(total) in (int, float) and math.isfinite(total):
        return values
    return [strict(value) for value in values]


def _cut_torn_line(path: Path) -> None:
    """Drop what a killed run left after its last newline; else the next line would join it."""
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
