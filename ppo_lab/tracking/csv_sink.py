"""``metrics.csv``: the scalars of ``metrics.jsonl`` as a table, for spreadsheets and pandas."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ppo_lab.tracking.base import Record, RunInfo, Sink
from ppo_lab.utils.json_files import atomic_write

__all__ = ["CSV_FILE", "CsvSink"]

CSV_FILE = "metrics.csv"


class CsvSink(Sink):
    """Appends a row per record; where a column is new, the file is written again with it.

    A cell is empty where a record lacks the metric. Histograms and texts are left out.
    """

    def start(self, run: RunInfo) -> None:
        """Write the header; of a resumed run, also the rows before its checkpoint."""
        self._path: Path = run.folder / CSV_FILE
        self._columns = ["iteration", "global_step"]
        rows = self._read() if run.resumed_at else []
        kept = [row for row in rows if int(row["iteration"]) <= run.resumed_at]
        self._write_again(kept)

    def record(self, record: Record) -> None:
        """Append a row; once written, it survives a killed process."""
        axes = {"iteration": record.iteration, "global_step": record.global_step}
        row = {**axes, **record.metrics}
        if new := [name for name in row if name not in self._columns]:
            rows = self._read()
            self._columns += new
            self._write_again([*rows, row])
            return
        with self._path.open("ab") as file:
            file.write(self._encoded([row]))

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Do nothing: every row is in the file."""

    def _read(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            self._columns = [*(reader.fieldnames or self._columns)]
        return rows

    def _write_again(self, rows: Iterable[Mapping[str, Any]]) -> None:
        header = {name: name for name in self._columns}
        atomic_write(self._path, self._encoded([header, *rows]))

    def _encoded(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()
