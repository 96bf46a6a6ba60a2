"""What `make gpu` runs, with a stand-in for Python."""

import os
import subprocess
from pathlib import Path

import torch

from benchmarks import memory, offload_step, result_page

ORDER = ["pytest", "benchmarks.memory", "benchmarks.offload_step", "benchmarks.gpu"]
SCRIPT = Path(__file__).parents[2] / ".ci" / "gpu"
STAND_IN = """#!/bin/sh
echo "$@" >> {calls}
case "$*" in *{fails}*) exit 1 ;; esac
"""


def run(folder, fails):
    """Return the exit status, what was printed, and the calls of Python."""
    python, calls = folder / "python", folder / "calls"
    calls.unlink(missing_ok=True)
    python.write_text(STAND_IN.format(calls=calls, fails=fails))
    python.chmod(0o755)
    places = {"PYTHON": str(python), "RESULTS": str(folder / "results")}
    done = subprocess.run([SCRIPT], env={**os.environ, **places}, capture_output=True, text=True)
    return done.returncode, done.stderr, calls.read_text().splitlines()[1:]


def test_all_run_in_order_though_one_fails_and_the_exit_status_says_so(tmp_path):
    status, shown, calls = run(tmp_path, fails="benchmarks.memory")
    assert status == 1
    assert "benchmarks.memory: exit status 1" in shown
    assert [call.split()[1] for call in calls] == ORDER
    assert run(tmp_path, fails="nothing")[0] == 0
    assert {path.stem for path in (tmp_path / "results").iterdir()} == set(ORDER)


def test_without_cuda_the_same_parts_are_tried_on_the_cpu(tmp_path):
    status, shown, calls = run(tmp_path, fails="is_available")
    assert status == 0
    assert "no CUDA device here" in shown
    assert [call.split()[1] for call in calls] == ORDER
    assert calls[-1].endswith("--device cpu --rounds 1")


def test_the_timeouts_leave_it_under_nine_minutes():
    lines = [line.split() for line in SCRIPT.read_text().splitlines() if line.startswith("check ")]
    assert len(lines) == len(ORDER)
    assert sum(10 + int(seconds) for _, seconds, *_ in lines) <= 540


def test_the_parts_of_this_repository_run_in_their_smallest_form(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(offload_step, "_SAMPLES", (8,))
    monkeypatch.setattr(result_page, "_circumstances", lambda: "")
    offload_step.main(["--limit-s", "60"])
    memory.main(["--sizes", "1", "--limit-s", "0"])  # past: trains nothing
    shown = capsys.readouterr().out
    assert "| 8 |" in shown
    assert "counted - forecast" in shown
