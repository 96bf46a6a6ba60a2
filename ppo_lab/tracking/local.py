"""The run's own files: ``metrics.jsonl``, one line per record, and ``summary.json``.

They are written in every tracking mode, and the report reads nothing else. NaN and infinity are
strings in them (see ``to_jsonable``); the readers here return them as floats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ppo_lab.tracking.base import Record, RunInfo, Sink
from ppo_lab.utils.json_files import from_jsonable, to_jsonable, write_json

__all__ = ["METRICS_FILE", "SUMMARY_FILE", "LocalSink", "read_metrics", "read_summary"]

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"


class LocalSink(Sink):
    """Appends each record to ``metrics.jsonl`` and writes ``summary.json`` at the end."""

    def __init__(self) -> None:
        """Open nothing: ``start`` gives the folder."""
        self._folder: Path | None = None
        self._file: TextIO | None = None

    def start(self, run: RunInfo) -> None:
        """Open the metrics file; a resumed run appends after its last complete line."""
        path = run.folder / METRICS_FILE
        if path.exists():
            _drop_incomplete_line(path)
        self._folder = run.folder
        self._file = path.open("a", encoding="utf-8")

    def record(self, record: Record) -> None:
        """Append one line and flush it, so that a killed run keeps it."""
        assert self._file is not None, "record before start"
        self._file.write(json.dumps(_row(record), allow_nan=False) + "\n")
        self._file.flush()

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:  # noqa: ARG002
        """Close the metrics file and write the summary."""
        assert self._folder is not None, "finish before start"
        if self._file is not None:
            self._file.close()
            self._file = None
        write_json(self._folder / SUMMARY_FILE, summary)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    r"""Read a run's metrics.

    Args:
        path: A ``metrics.jsonl``. An incomplete last line (the run was killed, or is writing) is
            ignored.

    Returns:
        One dict per iteration, in order: ``iteration``, ``global_step`` and the metrics by name;
        a histogram is a dict of ``counts`` and ``edges``. Where a resumed run repeated iterations,
        the later records replace the earlier ones.

    Raises:
        FileNotFoundError: The file does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "metrics.jsonl")
        ...     _ = path.write_text('{"iteration": 1, "global_step": 512, "ppo/kl": "NaN"}\n')
        ...     read_metrics(path)
        [{'iteration': 1, 'global_step': 512, 'ppo/kl': nan}]
    """
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        row = from_jsonable(json.loads(line))
        while rows and rows[-1]["iteration"] >= row["iteration"]:
            rows.pop()
        rows.append(row)
    return rows


def read_summary(path: Path) -> dict[str, Any]:
    """Read a run's result.

    Args:
        path: A ``summary.json``.

    Returns:
        The summary, its non-finite numbers as floats.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not JSON.
    """
    summary: dict[str, Any] = from_jsonable(json.loads(path.read_bytes()))
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
    """Return ``to_jsonable(values)``, ten times faster for a list of finite Python numbers.

    Such a list has a finite Python number as its sum; any other list is converted.
    """
    total = sum(values)
    if isinstance(values, list) and type(total) in (int, float) and math.isfinite(total):
        return values
    return [to_jsonable(value) for value in values]


def _drop_incomplete_line(path: Path) -> None:
    """Truncate the file after its last newline: a killed run may have left half a line."""
    with path.open("rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
