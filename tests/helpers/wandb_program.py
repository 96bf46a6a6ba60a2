"""A minimal trainer in a separate process: ``wandb_program.py OUTPUTS ROUNDS LANES``.

Each round starts LANES W&B sinks, records three rows on each, and finishes them with exit code
equal to the round's number. Prints one JSON line per run: its time and its link.
"""

import json
import logging
import math
import sys
import time
from pathlib import Path

from ppo_lab.tracking import Histogram, Record, RunInfo, SafeSink, TrackingConfig, WandbSink

logging.basicConfig(level=logging.WARNING)


def describe(folder: Path, run_id: str) -> RunInfo:
    config = {"ppo": {"epsilon": 0.2, "limit": math.inf}, "run": run_id}
    tags = ("cartpole", "x" * 80, "")
    return RunInfo(folder, run_id, f"name-{run_id}", "grid-1", tags, 300, config)


def rows(offset: float) -> list[Record]:
    """Step 100k has return 10k + offset and a NaN loss."""
    histograms = {"ppo/ratio": Histogram(counts=[1, 2], edges=[0.0, 1.0, 2.0])}
    return [
        Record(
            100 * k,
            k,
            {"charts/episodic_return": 10.0 * k + offset, "losses/value_loss": math.nan},
            histograms,
        )
        for k in (1, 2, 3)
    ]


def main(outputs: Path, num_rounds: int, num_lanes: int) -> None:
    config = TrackingConfig(tags=["mine"], notes="a note")
    for number in range(num_rounds):
        sinks = [WandbSink(config, outputs) for _ in range(num_lanes)]
        guards = [SafeSink(sink) for sink in sinks]
        took_s = [0.0] * num_lanes
        for lane, guard in enumerate(guards):
            begin = time.perf_counter()
            guard.start(describe(outputs, f"r{number}-l{lane}"))
            took_s[lane] += time.perf_counter() - begin
        for k in range(3):
            for lane, guard in enumerate(guards):
                guard.record(rows(float(lane))[k])
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
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
