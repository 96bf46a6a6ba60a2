"""The run's own files: ``metrics.jsonl``, one line per record, and ``summary.json``.

They are written in every tracking mode, and the report reads nothing else. NaN and infinity are
strings in them (see ``to_jsonable``); the readers here return them as floats.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppo_lab.tracking.base import Record, RunInfo, Sink
from ppo_lab.utils.json_files import (
    parse_object,
    read_bounded,
    retry_while_full,
    to_jsonable,
    write_json,
)
from ppo_lab.utils.redaction import mask_file, mask_values

__all__ = ["METRICS_FILE", "SUMMARY_FILE", "LocalSink", "cut_metrics", "read_metrics"]
__all__ += ["read_summary"]

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"

_MAX_SUMMARY_BYTES, _MAX_METRICS_BYTES = 1 << 24, 1 << 32
_BLOCK_BYTES = 1 << 20
_patience_s = [60.0]  # left to this process for a full disk, at the ends of all its runs


class LocalSink(Sink):
    """Appends each record to ``metrics.jsonl`` and writes ``summary.json`` at the end.

    The file is opened for each write (10 us): a stack may have more lanes than a process may open
    files, and an environment may close descriptors of others. Rows wait in memory while they cannot
    be written, so a call that raised has lost nothing.
    """

    def start(self, run: RunInfo) -> None:
        """Create the metrics file; a resumed run appends after its last complete row.

        Secrets in the files that Hydra has written are masked.
        """
        self._folder = run.folder
        self._waiting: list[bytes] = []
        self._position: int | None = None  # unknown until the file was opened once
        self._write_rows()
        hydras = [path.parent.glob("*.yaml") for path in run.folder.glob("*/hydra.yaml")]
        for path in itertools.chain(*hydras, run.folder.parent.glob("multirun.yaml")):
            mask_file(path)

    def record(self, record: Record) -> None:
        """Append a row, after those that wait; once written, it survives a killed process."""
        self._waiting.append(json.dumps(_row(record), allow_nan=False).encode() + b"\n")
        self._write_rows()

    def sync(self) -> int:
        """Write the rows that wait to disk; return the file's length, see ``cut_metrics``."""
        return self._write_rows(is_durable=True)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:  # noqa: ARG002
        """Write the rows that wait and the summary; wait a while if the disk is full."""
        path, content = self._folder / SUMMARY_FILE, mask_values(to_jsonable(summary))
        try:
            retry_while_full(self._write_rows, _patience_s)
        finally:
            retry_while_full(lambda: write_json(path, content), _patience_s)

    def _write_rows(self, *, is_durable: bool = False) -> int:
        """Write the rows that wait; return the length of the file."""
        descriptor = os.open(self._folder / METRICS_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            if self._position is None or size < self._position:  # new, or cut by another process
                self._position = _cut_torn_row(descriptor)
            elif size > self._position:  # of a write that failed halfway
                os.ftruncate(descriptor, self._position)
            rows = memoryview(b"".join(self._waiting))
            num_written = 0
            while num_written < len(rows):
                end = self._position + num_written
                num_written += os.pwrite(descriptor, rows[num_written:], end)
            self._position += num_written
            self._waiting = []
            if is_durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return self._position


def cut_metrics(folder: Path, position: int) -> None:
    """Cut a run's ``metrics.jsonl`` back to ``position``, where ``LocalSink.sync`` saw its end.

    Raises:
        ValueError: The file is shorter, or no row ends there: it is not the file of that run.
        OSError: The file cannot be written.
    """
    path = folder / METRICS_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size < position or (position and os.pread(descriptor, 1, position - 1) != b"\n"):
            raise ValueError(f"{path}: no row ends after {position} of its {size} bytes")
        os.ftruncate(descriptor, position)
    finally:
        os.close(descriptor)


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
        OSError: The file cannot be read.
        ValueError: It holds something else, is no regular file or is too large.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "metrics.jsonl")
        ...     _ = path.write_text('{"iteration": 1, "global_step": 512, "ppo/kl": "NaN"}\n')
        ...     read_metrics(path)
        [{'iteration': 1, 'global_step': 512, 'ppo/kl': nan}]
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(read_bounded(path, _MAX_METRICS_BYTES).split(b"\n")[:-1], 1):
        row = parse_object(line, f"{path}, line {number}")
        if not (type(row.get("iteration")) is int and type(row.get("global_step")) is int):
            raise ValueError(f"{path}, line {number}: has no iteration and global_step")
        while rows and rows[-1]["iteration"] >= row["iteration"]:
            rows.pop()
        rows.append(row)
    return rows


def read_summary(path: Path) -> dict[str, Any]:
    """Read a ``summary.json``, with its non-finite numbers as floats.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a JSON object, no regular file, or too large.
    """
    return parse_object(read_bounded(path, _MAX_SUMMARY_BYTES), path)


def _cut_torn_row(descriptor: int) -> int:
    """Cut off what follows the last line break, as a killed run left it; return the new size."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        begin = max(end - _BLOCK_BYTES, 0)
        end = begin + os.pread(descriptor, end - begin, begin).rfind(b"\n") + 1
        if end > begin:
            break
    if end < size:
        os.ftruncate(descriptor, end)
    return end


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
