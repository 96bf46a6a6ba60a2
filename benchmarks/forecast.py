"""``python -m benchmarks.forecast``: the memory of every strategy, and the forecast's error.

Needs no GPU. The forecast is compared byte by byte with a counted run on this CPU, for the networks
that a CPU can train.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.result_page import publish, table
from ppo_lab.config.compose import check_jobs, register
from ppo_lab.config.run import Config
from ppo_lab.forecasting.budget import over_budget
from ppo_lab.forecasting.counting import counted_trainer, ledger_of
from ppo_lab.forecasting.dry_run import dry_run
from ppo_lab.forecasting.forecast import forecast
from ppo_lab.memory import STRATEGIES

_GIB = 1024**3
_NETWORKS = ("tiny", "small", "medium", "large", "huge")
_COUNTED = ("tiny", "small", "medium")  # what a CPU trains in seconds
_ROWS = ("num_envs=64", "num_steps=128", "num_epochs=4", "num_minibatches=4")
_FEW_ROWS = (
    *("num_envs=16", "num_steps=32", "num_epochs=2", "num_minibatches=2"),
    "network.init=default",  # orthogonal matrices take longer than the iteration
)
_DEEP = "network.hidden=[64,64,64,64,64]"
_OPTIONS = {
    "float32": (),
    "bfloat16": ("dtype=bfloat16",),
    "checkpointing, 5 layers": (_DEEP, "memory.checkpoint_activations=true"),
    "4 micro-batches": ("memory.num_micro_batches=4",),
    "rollout on the host": ("memory.rollout_place=host",),
}
_OVER = ("network=huge", "num_envs=1024", "num_minibatches=8", "total_steps=1_000_000")
_PAIR = "network.hidden=[" + ",".join(["16384"] * 8) + "]"
_MEASURE = """
import json, sys, time
from pathlib import Path
from ppo_lab.config.compose import check_jobs, register
from ppo_lab.forecasting.forecast import forecast
register()
(job,) = check_jobs(sys.argv[1:], is_multirun=False, config_dir=None, config_name=None)
def peak_mib():
    # not ru_maxrss, which begins with the parent's
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
before = peak_mib()
wall, cpu = time.perf_counter(), time.process_time()
needed = forecast(job.config)
print(json.dumps({
    "total": needed.total,
    "parameters": sum(needed.num_parameters.values()),
    "wall_s": time.perf_counter() - wall,
    "cpu_s": time.process_time() - cpu,
    "rss_mib": peak_mib(),
    "rss_before_mib": before,
}))
"""


def _config(*overrides: str) -> Config:
    words = ["tracking=local", "device=cpu", *overrides]
    return check_jobs(words, is_multirun=False, config_dir=None, config_name=None)[0].config


def sizes() -> str:
    """Return what every strategy needs for every network that ships."""
    rows = []
    for network, strategy in itertools.product(_NETWORKS, STRATEGIES):
        config = _config(*_ROWS, f"network={network}", f"memory={strategy}")
        begin_s = time.process_time()
        needed = forecast(config)
        seconds = time.process_time() - begin_s
        peak = needed.peak
        rows.append(
            [
                f"{network}, {strategy}",
                f"{peak.total / _GIB:.3f}",
                f"{needed.total / _GIB:.2f}",
                f"{peak.phase}: {peak.doing}",
                f"{needed.host_peak.total / _GIB:.3f}",
                f"{needed.bus.iteration.total / _GIB:.3f}",
                config.memory.cost.describe(config.weights_dtype.itemsize),
                f"{seconds:.1f}",
            ]
        )
    header = ["network, strategy", "tensors", "with CUDA's own", "the peak's moment", "host"]
    return table([*header, "PCIe per iteration", "per parameter", "CPU s"], rows)


def _differences(config: Config) -> Iterator[int]:
    """Yield |counted - forecast| bytes of every category and network of every phase, and more."""
    dry, trainer = dry_run(config), counted_trainer([config])
    startup = dataclasses.replace(trainer.placement.traffic)
    trainer.iterate()
    ledger = ledger_of(trainer)
    assert ledger is not None
    for phase, planned in dry.phase_peaks.items():
        counted = ledger.phase_peaks[phase]
        for key in planned.by_key.keys() | counted.by_key.keys():
            yield abs(planned.by_key.get(key, 0) - counted.by_key.get(key, 0))
    yield abs(dry.host_peak.total - ledger.host_peak.total)
    moved = trainer.placement.traffic.since(startup)
    yield abs(moved.h2d_bytes - dry.bus.iteration.h2d_bytes)
    yield abs(moved.d2h_bytes - dry.bus.iteration.d2h_bytes)


def held_to_a_run(networks: Sequence[str]) -> str:
    """Return the largest difference between forecast and counted run, in bytes."""
    rows = []
    for network, strategy in itertools.product(networks, STRATEGIES):
        largest: list[object] = []
        for options in _OPTIONS.values():
            config = _config(*_FEW_ROWS, f"network={network}", f"memory={strategy}", *options)
            largest.append(max(_differences(config)))
        rows.append([f"{network}, {strategy}", *largest])
    return table(["bytes", *_OPTIONS], rows)


def large_pair() -> str:
    """Return what a forecast of 3.8 billion parameters costs, each in a process of its own."""
    rows = []
    for strategy in STRATEGIES:
        words = [_PAIR, f"memory={strategy}", "tracking=local", "device=cpu"]
        command = [sys.executable, "-c", _MEASURE, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        cost: dict[str, Any] = json.loads(done.stdout)
        rows.append(
            [
                strategy,
                f"{cost['parameters'] / 1e9:.2f}",
                f"{cost['total'] / _GIB:.1f}",
                f"{cost['wall_s']:.1f}",
                f"{cost['cpu_s']:.1f}",
                f"{cost['rss_mib']:.0f} ({cost['rss_before_mib']:.0f} before)",
            ]
        )
    header = ["strategy", "billion parameters", "GiB", "wall s", "CPU s", "peak MiB of the process"]
    return table(header, rows)


def main() -> None:
    """Print the page; ``--write`` keeps it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    parser.add_argument("--quick", action="store_true", help="hold only the tiny network to a run")
    arguments = parser.parse_args()
    register()
    excess = over_budget(_config(*_OVER, "vram_budget_gib=24"))
    message = excess.message() if excess else "nothing: it fits"
    parts = [
        f"GiB, CartPole, {' '.join(_ROWS)}; no GPU was used.\n\n" + sizes(),
        "## Held to a run\n\nThe largest difference, in bytes, between the forecast and a real "
        "first iteration counted on this CPU: over every phase, category and network, host memory, "
        f"and the bytes that crossed the bus. {' '.join(_FEW_ROWS)}.\n\n"
        + held_to_a_run(_COUNTED[:1] if arguments.quick else _COUNTED),
        "## 3.8 billion parameters\n\nTwo networks of 8 x 16384; the first forecast of a process, "
        f"its imports included.\n\n{large_pair()}",
        f"## Advice\n\n`{' '.join(_OVER)} vram_budget_gib=24` is refused with\n\n"
        f"```\n{message}\n```",
    ]
    publish("forecast", "Memory, forecast", parts, write=arguments.write)


if __name__ == "__main__":
    main()
