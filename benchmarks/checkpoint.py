"""``python -m benchmarks.checkpoint``: what a checkpoint of one run costs, by network.

A checkpoint is what the runner writes: the lane's state is read, written, flushed to the disk and
renamed. Its share of a run is that of one checkpoint every ``checkpoint.every_s`` = 60 seconds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from ppo_lab.config.compose import check_jobs, register
from ppo_lab.training.checkpoint import describe_run, load_checkpoint, save_checkpoint
from ppo_lab.training.precision import configure_torch
from ppo_lab.training.trainer import Trainer

_NETWORKS = ("small", "medium")
_NUM_CHECKPOINTS = 20


def main() -> None:
    """Print a line for each network."""
    register()
    for network in _NETWORKS:
        overrides = [f"network={network}", "env=cartpole", "device=cpu", "tracking=local"]
        (job,) = check_jobs(overrides, is_multirun=False, config_dir=None, config_name=None)
        configure_torch(job.config)
        trainer = Trainer([job.config])
        trainer.iterate()
        read_s, write_s = [], []
        with tempfile.TemporaryDirectory(dir=".") as name:
            for _ in range(_NUM_CHECKPOINTS):
                begin_s = time.perf_counter()
                state = trainer.lane_state(0)
                read_s.append(time.perf_counter() - begin_s)
                folder = save_checkpoint(Path(name), state, describe_run(job.config, state))
                write_s.append(time.perf_counter() - begin_s - read_s[-1])
            num_bytes = sum(path.stat().st_size for path in folder.iterdir())
            begin_s = time.perf_counter()
            assert load_checkpoint(Path(name)) is not None
            load_s = time.perf_counter() - begin_s
        median_s = statistics.median(map(sum, zip(read_s, write_s)))
        every_s = job.config.checkpoint.every_s
        print(
            f"network={network}: {1e3 * median_s:.1f} ms per checkpoint "
            f"({1e3 * statistics.median(read_s):.1f} ms to read the state), {num_bytes:,} bytes, "
            f"{median_s / every_s:.3%} of a run; loaded and verified in {1e3 * load_s:.1f} ms"
        )


if __name__ == "__main__":
    main()
