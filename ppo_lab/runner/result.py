"""The result of a trial, written to a file first so that no storage outage can lose it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ppo_lab.runner.run_record import Status
from ppo_lab.utils.json_files import parse_object, retry_while_full, write_json
from ppo_lab.utils.redaction import mask_values

__all__ = ["RESULT_FILE", "Result", "read_result", "worst_status"]

log = logging.getLogger(__name__)

RESULT_FILE = "result.json"
_LONGEST_FULL_S = 3600.0  # the run may have taken longer


@dataclass(frozen=True)
class Result:
    """How one attempt at a trial ended."""

    number: int
    status: str
    """Of the seed with the worst status; a value of ``Status``, or ``refused``."""
    reason: str | None
    summaries: list[dict[str, Any]]
    """Content of each seed's summary.json; a seed that never began has none."""

    @property
    def is_final(self) -> bool:
        """Whether another attempt would end the same way."""
        return self.status not in ("failed", "interrupted")

    def write(self, folder: Path) -> None:
        """Write ``result.json`` atomically into the attempt's folder; retry while the disk is full.

        Raises:
            OSError: the file cannot be written.
        """
        path, content = folder / RESULT_FILE, mask_values(asdict(self))
        retry_while_full(lambda: write_json(path, content), [_LONGEST_FULL_S])


def read_result(folder: Path) -> Result | None:
    """Return the result in an attempt's folder; None if there is none, or a damaged file."""
    path = folder / RESULT_FILE
    try:
        return Result(**parse_object(path.read_bytes(), path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, TypeError, ValueError) as error:
        log.warning("the attempt in %s has no result that can be read: %s", folder, error)
        return None


def worst_status(summaries: Sequence[dict[str, Any]]) -> tuple[str, str | None]:
    """Return status and reason of the seed with the worst status, in the order of ``Status``.

    Example:
        >>> seeds = [("finished", None), ("diverged", "loss is nan")]
        >>> worst_status([{"status": status, "reason": reason} for status, reason in seeds])
        ('diverged', 'loss is nan')
    """
    order = [status.value for status in Status]
    worst = max(summaries, key=lambda summary: order.index(summary["status"]))
    return worst["status"], worst["reason"]
