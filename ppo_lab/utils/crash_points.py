"""Named places at which a test may have this process killed, to show that nothing is lost there.

``PPO_LAB_CRASH_AT=name`` kills the process with SIGKILL where it comes to that place,
``name:3`` where it comes there for the third time.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

__all__ = ["CRASH_POINTS", "VARIABLE", "crash_point"]

VARIABLE = "PPO_LAB_CRASH_AT"
CRASH_POINTS = {
    "row_written": "an iteration's row is in metrics.jsonl, no checkpoint names it",
    "rows_synced": "the rows are on disk, the checkpoint that names them is not begun",
    "checkpoint_half_written": "the tensors are written, numbers and manifest are not",
    "checkpoint_before_rename": "a checkpoint is complete under its temporary name",
    "checkpoint_after_rename": "it has its name, older ones are not yet removed",
    "checkpoint_before_policy": "the policy is older than the checkpoint",
    "resume_before_cut": "a run is being resumed, its rows are not yet cut back",
    "resume_after_cut": "its rows are cut back, nothing was trained since",
    "policy_before_summary": "the last policy is saved, the summary is not",
    "summary_written": "the summary is there, the run is not yet left",
}
"""What has happened and what has not at each place; one run may visit them in this order."""

_num_visits: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Kill this process if it was asked to end at ``name``."""
    wanted, _, visit = os.environ.get(VARIABLE, "").partition(":")
    assert name in CRASH_POINTS, name
    if wanted != name:
        return
    _num_visits[name] += 1
    if _num_visits[name] == int(visit or 1):
        os.kill(os.getpid(), signal.SIGKILL)
