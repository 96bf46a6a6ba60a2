"""The run's own files: ``metrics.jsonl``, one line per record, and ``summary.json``.

Runs whose episodes are texts also have ``samples.jsonl``: some texts with their rewards a line.

They are written in every tracking mode, and the report reads nothing else. NaN and infinity are
strings in them (see ``to_jsonable``); the readers here return them as floats.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppo_lab.tracking.base import Record, RunInfo, Sink
from ppo_lab.tracking.row_file import RowFile
from ppo_lab.utils.json_files import (
    atomic_write,
    parse_object,
    read_bounded,
    retry_while_full,
    to_jsonable,
    write_json,
)
from ppo_lab.utils.redaction import mask_file, mask_values

__all__ = [
    "METRICS_FILE",
    "SAMPLES_FILE",
    "SUMMARY_FILE",
    "LocalSink",
    "cut_metrics",
    "read_metrics",
]
__all__ += ["read_summary"]

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
SAMPLES_FILE = "samples.jsonl"

_MAX_SUMMARY_BYTES, _MAX_METRICS_BYTES = 1 << 24, 1 << 32
_patience_s = [60.0]  # left to this process for a full disk, at the ends of all its runs


class LocalSink(Sink):
    """Appends each record to ``metrics.jsonl``, samples to ``samples.jsonl``; and the summary.

    Rows wait in memory while they cannot be written, so a call that raised has lost nothing.
    """

    def start(self, run: RunInfo) -> None:
        """Create the metrics file; a resumed run appends after its last complete row.

        Secrets in the files that Hydra has written are masked.
        """
        self._folder = run.folder
        self._metrics = RowFile(run.folder / METRICS_FILE)
        self._samples = RowFile(run.folder / SAMPLES_FILE)
        self._metrics.write()
        _cut_samples(self._samples.path, run.resumed_at)
        hydras = [path.parent.glob("*.yaml") for path in run.folder.glob("*/hydra.yaml")]
        for path in itertools.chain(*hydras, run.folder.parent.glob("multirun.yaml")):
            mask_file(path)

    def record(self, record: Record) -> None:
        """Append a row, after those that wait; once written, it survives a killed process."""
        try:
            self._metrics.append(_row(record))
        finally:  # on a full disk both wait
            if record.samples:
                texts, rewards = zip(*record.samples)
                axes = {"iteration": record.iteration, "global_step": record.global_step}
                self._samples.append({**axes, "texts": texts, "rewards": to_jsonable(rewards)})

    def sync(self) -> int:
        """Write the rows that wait to disk; return the metrics' length, see ``cut_metrics``."""
        self._samples.write_waiting(is_durable=True)
        return self._metrics.write(is_durable=True)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:  # noqa: ARG002
        """Write the rows that wait and the summary; wait a while if the disk is full."""
        path, content = self._folder / SUMMARY_FILE, mask_values(to_jsonable(summary))
        try:
            retry_while_full(self._write_rows, _patience_s)
        finally:
            retry_while_full(lambda: write_json(path, content), _patience_s)

    def _write_rows(self) -> None:
        self._metrics.write()
        self._samples.write_waiting()


def _cut_samples(path: Path, iteration: int) -> None:
    """Remove the samples of later iterations, which the run is going to repeat."""
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")[:-1]
    kept = [line for line in lines if parse_object(line, path).get("iteration", 0) <= iteration]
    if len(kept) < len(lines):
        atomic_write(path, b"".join(line + b"\n" for line in kept))


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


def read_metrics(path: Path, most: int | None = None) -> list[dict[str, Any]]:
    r"""Read a run's metrics.

    Args:
        path: A ``metrics.jsonl``. An incomplete last line (the run was killed, or is writing) is
            ignored.
        most: Read at most so many rows, evenly spaced, the last one included. None: all.

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
    lines = list(enumerate(read_bounded(path, _MAX_METRICS_BYTES).split(b"\n")[:-1], 1))
    stride = max(-(-len(lines) // most), 1) if most else 1
    for number, line in lines[(len(lines) - 1) % stride :: stride]:
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
