"""What `make gpu` runs, with a stand-in for Python."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / ".ci" / "gpu"
STAND_IN = """#!/bin/sh
echo "$@" >> {calls}
case "$*" in *{fails}*) exit 1 ;; esac
"""


def run(folder, fails):
    """Return the exit status, what was printed, and the calls of Python."""
    python, calls = folder / "python", folder / "calls"
    python.write_text(STAND_IN.format(calls=calls, fails=fails))
    python.chmod(0o755)
    done = subprocess.run(
        [SCRIPT], env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True
    )
    return done.returncode, done.stderr, calls.read_text().splitlines()[1:]


def test_all_three_run_though_one_fails_and_the_exit_status_says_so(tmp_path):
    status, shown, calls = run(tmp_path, fails="benchmarks.gpu")
    assert status == 1
    assert "benchmarks.gpu: exit status 1" in shown
    assert [call.split()[1] for call in calls] == ["pytest", "benchmarks.gpu", "benchmarks.memory"]
    assert run(tmp_path, fails="nothing")[0] == 0


def test_without_cuda_nothing_runs_and_the_exit_status_is_2(tmp_path):
    status, shown, calls = run(tmp_path, fails="is_available")
    assert (status, calls) == (2, [])
    assert "no CUDA device here" in shown


def test_the_three_timeouts_leave_it_under_nine_minutes():
    lines = [line.split() for line in SCRIPT.read_text().splitlines() if line.startswith("check ")]
    assert len(lines) == 3
    assert sum(10 + int(seconds) for _, seconds, *_ in lines) <= 540
