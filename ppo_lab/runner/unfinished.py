"""What a run's folder says whose summary is not there: the run trains, or its process is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppo_lab.runner.lock import holder_of

__all__ = ["unfinished_summary"]


def unfinished_summary(folder: Path) -> dict[str, Any]:
    """Return status and reason of a run without a summary.

    ``running`` while a process holds its lock; ``interrupted`` if it can go on from a checkpoint;
    else ``died``.
    """
    if holder := holder_of(folder):
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        return {"status": "running", "reason": f"is trained by {who}", "folder": str(folder)}
    saved = [
        int(path.parent.name) for path in (folder / "checkpoints").glob("[0-9]*/manifest.json")
    ]
    if saved:
        reason = f"its process ended; a checkpoint of iteration {max(saved)} is there"
        return {"status": "interrupted", "reason": reason, "folder": str(folder)}
    reason = "its process ended without a summary"
    return {"status": "died", "reason": reason, "folder": str(folder)}
