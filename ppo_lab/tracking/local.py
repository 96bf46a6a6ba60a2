"""The run's own files: ``metrics.jsonl``, one line per record, and ``summary.json``.

They are written in every tracking mode, and the report reads nothing else. NaN and infinity are
strings in them (see ``to_jsonable``); the readers here return them as floats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppo_lab.tracking.base import Record, RunInfo, Sink
from ppo_lab.utils.json_files import from_jsonable, to_jsonable, write_json

__all__ = ["METRICS_FILE", "SUMMARY_FILE", "LocalSink", "read_metrics", "read_summary"]

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"


class LocalSink(Sink):
    """Appends each record to ``metrics.jsonl`` and writes ``summary.json`` at the end."""

    def start(self, run: RunInfo) -> None:
        """Open the metrics file; a resumed run appends after its last complete line."""
        path = run.folder / METRICS_FILE
        if path.exists():  # a killed run may have left half a line
            with path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        self._folder, self._file = run.folder, path.open("a", encoding="utf-8")

    def record(self, record: Record) -> None:
        """Append one line and flush it, so that a killed run keeps it."""
        self._file.write(json.dumps(_row(record), allow_nan=False) + "\n")
        self._file.flush()

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:  # noqa: ARG002
        """Close the metrics file and write the summary."""
        self._file.close()
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
    """Read a ``summary.json``, with its non-finite numbers as floats.

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
    metrics = dict(zip(record.metrics, _numbers([*record.metrics.values()])))
    return {
        "global_step": record.global_step,
        "iteration": record.iteration,
        **metrics,
        **histograms,
    }


def _numbers(values: Sequence[float]) -> Sequence[Any]:
    """Return ``to_jsonable(values)``, ten times faster for a list of finite Python numbers."""
    total = sum(values)  # a finite Python number for such a list alone
    if isinstance(values, list) and type(total) in (int, float) and math.isfinite(total):
        return values
    return [to_jsonable(value) for value in values]
