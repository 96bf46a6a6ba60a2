"""What a study costs beside training: until the first trial, between trials, and in memory.

    OMP_NUM_THREADS=1 python -m benchmarks.study_overhead [--trials 30] [--steps 16384]

The times are wall time, so an idle machine is needed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

__all__ = ["main"]


def fresh_start_s() -> float:
    """Return what a new interpreter takes until it could begin to train: a trial without a fork."""
    begin_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import ppo_lab.sweep.trial"], check=True)
    return time.perf_counter() - begin_s


def resident_mib(pid: int) -> float:
    """Return the memory that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--steps", type=int, default=16384)
    arguments = parser.parse_args()
    command = [
        sys.executable, "-m", "ppo_lab", "study=default", "epsilon=interval(0.05,0.5)",
        "study.name=overhead", f"study.num_trials={arguments.trials}", "study.num_slots=1",
        "study/pruner=none", "network=tiny", f"total_steps={arguments.steps}", "tracking=local",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trials = Path(folder) / "outputs" / "studies" / "overhead" / "trials"
        begin_s, memory = time.time(), []
        with (Path(folder) / "shown").open("wb") as shown:
            process = subprocess.Popen(command, cwd=folder, stdout=shown, stderr=shown)
            while process.poll() is None:
                time.sleep(1.0)
                if process.poll() is None and (trials / "0001").exists():
                    memory.append(resident_mib(process.pid))
        assert process.returncode == 0, (Path(folder) / "shown").read_text()
        results = sorted(trials.glob("*/result.json"))
        ended_s = [path.stat().st_mtime for path in results]
        trained_s = [_trained_s(path) for path in results]
        rest_s = [
            after - before - trained
            for before, after, trained in zip(ended_s, ended_s[1:], trained_s[1:])
        ]
        began = min(p.stat().st_mtime for p in results[0].parent.glob("seed_*/.hydra/config.yaml"))
    print(f"first trial trains after {began - begin_s:.2f} s")
    print(f"training, per trial: median {statistics.median(trained_s):.2f} s")
    print(f"beside training, per trial: median {statistics.median(rest_s):.2f} s")
    fresh_s = statistics.median(fresh_start_s() for _ in range(5))
    print(f"without the fork server each trial would first import for {fresh_s:.2f} s")
    print(f"parent's memory: {memory[0]:.0f} MiB at first, {memory[-1]:.0f} MiB at the end")


def _trained_s(result: Path) -> float:
    (summary,) = json.loads(result.read_text())["summaries"]
    return sum(summary["time"].values())


if __name__ == "__main__":
    main()
