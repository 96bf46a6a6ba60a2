"""A minimal trainer in a separate process: ``wandb_program.py OUTPUTS ROUNDS LANES [KEY=VALUE]``.

Each round starts LANES W&B sinks, records three rows on each, and finishes them with exit code
equal to the round's number. Prints one JSON line per run: its time and its link. Options:
``first=N`` is a resumed run whose rows begin at N, ``kill=core`` kills wandb's service process
after the first row of the first round, ``ids=single`` has no group, ``host=NAME`` is this machine's
name, ``init_timeout_s=S``, ``pause_s=S`` is a pause before the end, for the system metrics.
"""

import json
import logging
import math
import os
import signal
import socket
import sys
import time
from pathlib import Path

from ppo_lab.tracking import Histogram, Record, RunInfo, SafeSink, TrackingConfig, WandbSink

logging.basicConfig(level=logging.WARNING)


def describe(folder: Path, run_id: str, resumed_at: int = 0) -> RunInfo:
    config = {"ppo": {"epsilon": 0.2, "limit": math.inf}, "run": run_id}
    tags = ("cartpole", "x" * 80, "")
    group = None if run_id.startswith("single") else "grid-1"
    name = f"name-{run_id}"
    return RunInfo(folder, run_id, name, group, tags, 300, config, resumed_at=resumed_at)


def kill_core() -> None:
    """Kill wandb's service process, which is a child of this one, and wait until it is gone."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if state[1] == str(os.getpid()) and b"wandb-core" in (folder / "cmdline").read_bytes():
            os.kill(int(folder.name), signal.SIGKILL)
            os.waitid(os.P_PID, int(folder.name), os.WEXITED | os.WNOWAIT)


def rows(offset: float, first: int = 1) -> list[Record]:
    """Step 100k has return 10k + offset and a NaN loss."""
    histograms = {"ppo/ratio": Histogram(counts=[1, 2], edges=[0.0, 1.0, 2.0])}
    return [
        Record(
            100 * k,
            k,
            {"charts/episodic_return": 10.0 * k + offset, "losses/value_loss": math.nan},
            histograms,
        )
        for k in range(first, first + 3)
    ]


def main(outputs: Path, num_rounds: int, num_lanes: int, options: dict[str, str]) -> None:
    config = TrackingConfig(tags=["mine"], notes="a note")
    config.init_timeout_s = float(options.get("init_timeout_s", config.init_timeout_s))
    first, ids = int(options.get("first", 1)), options.get("ids", "r")
    for number in range(num_rounds):
        sinks = [WandbSink(config, outputs) for _ in range(num_lanes)]
        guards = [SafeSink(sink) for sink in sinks]
        took_s = [0.0] * num_lanes
        for lane, guard in enumerate(guards):
            begin = time.perf_counter()
            guard.start(describe(outputs, f"{ids}{number}-l{lane}", first - 1))
            took_s[lane] += time.perf_counter() - begin
        for k in range(3):
            for lane, guard in enumerate(guards):
                guard.record(rows(float(lane), first)[k])
            if "kill" in options and k == number == 0:
                kill_core()
        time.sleep(float(options.get("pause_s", 0.0)))
        for lane, guard in enumerate(guards):
            begin = time.perf_counter()
            guard.finish({"final_return": 30.0 + lane, "loss": math.nan}, number)
            took_s[lane] += time.perf_counter() - begin
            result = {
                "link": sinks[lane].link,
                "took_s": took_s[lane],
                "num_failures": guard.num_failures,
                "reason": guard.reason,
            }
            sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    words = dict(word.split("=") for word in sys.argv[4:])
    if "host" in words:
        socket.gethostname = lambda: words["host"]
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), words)
