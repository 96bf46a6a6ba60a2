"""A file of JSON rows that is appended to, whatever happens to the process or to the disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["RowFile"]

_BLOCK_BYTES = 1 << 20


class RowFile:
    """Appends rows, one a line; those that cannot be written wait in memory.

    The file is opened for each write (10 us): a stack may have more lanes than a process may open
    files, and an environment may close descriptors of others. A call that raised has lost nothing.
    """

    def __init__(self, path: Path) -> None:
        """Append to ``path`` after its last complete row; nothing is written yet."""
        self.path = path
        self._waiting: list[bytes] = []
        self._position: int | None = None  # unknown until the file was opened once

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row, after those that wait; once written, it survives a killed process."""
        self._waiting.append(json.dumps(row, allow_nan=False).encode() + b"\n")
        self.write()

    def write(self, *, is_durable: bool = False) -> int:
        """Write the rows that wait, to disk if ``is_durable``; return the length of the file.

        Raises:
            OSError: They cannot be written now.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
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

    def write_waiting(self, *, is_durable: bool = False) -> None:
        """As ``write``, but leave the file alone if no row waits and it is not to be durable."""
        if self._waiting or (is_durable and self._position is not None):
            self.write(is_durable=is_durable)


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
