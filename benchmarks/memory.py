"""``python -m benchmarks.memory``: memory of each strategy, forecast and measured.

On a GPU, in under 8 minutes: wide and deep networks under every strategy; an emulated card of
24 GiB. Without one: small networks,
counted on the CPU, which shows the bytes held and moved, but not the speed.

The environment is native and takes almost no time, so that the networks are measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.result_page import Deadline, publish, table
from ppo_lab.config.compose import check_jobs, register
from ppo_lab.devices.pcie import measure_bus
from ppo_lab.forecasting.budget import over_budget
from ppo_lab.forecasting.forecast import cuda_context, forecast
from ppo_lab.memory import STRATEGIES
from ppo_lab.runner.run import Status, run_in_folder
from ppo_lab.tracking import read_metrics

_SETTINGS = [
    "env=cartpole",
    "env.backend=torch",
    "network.activation=relu",
    "network.init=default",  # orthogonal matrices of 8192 take longer than the training here
    "tracking=local",
    "tracking.terminal=none",
    "profile=always",
    "vram_budget_gib=none",
]
_GPU_SIZES = ((4096, 4), (4096, 8), (8192, 6), (8192, 12))
_GPU_ROWS = [  # 16,384 samples per gradient step, two steps and one rollout an iteration
    "num_envs=1024",
    "num_steps=16",
    "num_minibatches=1",
    "num_epochs=2",
    "total_steps=49152",
]
_CPU_SIZES = ((64, 2), (256, 2), (1024, 3))
_CPU_ROWS = [
    "num_envs=32",
    "num_steps=32",
    "num_minibatches=1",
    "num_epochs=2",
    "total_steps=3072",
]
_LIMIT_GIB = 24
_STEADY = 2  # of three iterations: the first counts memory, the third is profiled
_MIB = 1024**2
_GIB = 1024**3
_WHAT = (
    "Speed and bytes over the bus are of steady iterations. `counted` is the ledger's peak in the "
    "first iteration; the return is of a few thousand steps and says only that the run learns."
)
_PHASES = ("rollout", "advantages", "update", "diagnostics")


@dataclass(frozen=True)
class Measured:
    """Summary and metrics of one run."""

    label: str
    summary: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def iteration_s(self) -> float:
        """Seconds of a steady iteration without its record."""
        return float(sum(self.rows[_STEADY - 1][f"time/{phase}_s"] for phase in _PHASES))

    @property
    def steps_per_s(self) -> float:
        """Environment steps per second of steady iterations."""
        return float(self.rows[0]["global_step"] / self.iteration_s)

    @property
    def bus_bytes(self) -> float:
        """Bytes over the bus in a steady iteration, both ways."""
        row = self.rows[_STEADY - 1]
        return float(row["pcie/h2d_bytes"] + row["pcie/d2h_bytes"])


def train(label: str, overrides: Sequence[str]) -> Measured:
    """Train in a temporary folder and return its summary and metrics."""
    (job,) = check_jobs(overrides, is_multirun=False, config_dir=None, config_name=None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin_s = time.perf_counter()
        summary = run_in_folder(job.config, folder, overrides=list(overrides))
        took_s = time.perf_counter() - begin_s
        peak = summary["memory"].get("measured", {}).get("allocated_gib")
        measured = "" if peak is None else f", peak {_gib(peak)}"
        print(f"{label}: {summary['status']} in {took_s:.1f} s{measured}", file=sys.stderr)
        return Measured(label, summary, read_metrics(folder / "metrics.jsonl"))


def settings(width: int, depth: int, *more: str) -> list[str]:
    return [*_SETTINGS, f"network.hidden={[width] * depth}".replace(" ", ""), *more]


def sizes_table(runs: Sequence[Measured], *, is_cuda: bool) -> str:
    """Return a table of forecast, counted and measured memory of every run."""
    rows: list[list[object]] = []
    for run in runs:
        memory = run.summary["memory"]
        if run.summary["status"] != Status.finished.value:  # more than this card has
            rows.append([f"{run.label}: {run.summary['reason']}", *[""] * (9 if is_cuda else 5)])
            continue
        planned, counted = memory["forecast"]["peak_gib"], memory["ledger"]["peak_gib"]
        cells: list[object] = [run.label, _gib(planned), _percent(counted, planned)]
        if is_cuda:
            allocated = memory["measured"]["allocated_gib"]
            expected = memory["forecast"]["allocated_gib"]
            window = next((row for row in run.rows if "perf/exposed_copy_frac" in row), {})
            exposed = window.get("perf/exposed_copy_frac")
            cells += [
                _gib(expected),
                _gib(allocated),
                _percent(allocated, expected),
                "-" if exposed is None else f"{exposed:.1%}",
            ]
        score = run.summary["final_return"]
        cells += [
            f"{run.bus_bytes / _MIB:,.2f}",
            f"{run.steps_per_s:,.0f}",
            "-" if score is None else f"{score:.1f}",
        ]
        rows.append(cells)
    device = ["allocated: forecast", "measured", "measured - forecast", "exposed copy"]
    return table(
        [
            "network, strategy",
            "tensors: forecast",
            "counted - forecast",
            *(device if is_cuda else []),
            "MiB over the bus per iteration",
            "env steps/s",
            "return",
        ],
        rows,
    )


def strategies(
    sizes: Sequence[tuple[int, int]], rows: Sequence[str], deadline: Deadline
) -> list[Measured]:
    """Train every strategy on every size, until the deadline."""
    return [
        train(_label(size, strategy), settings(*size, *rows, f"memory={strategy}"))
        for size in sizes
        for strategy in STRATEGIES
        if not deadline.has_passed
    ]


def small_card(deadline: Deadline) -> list[Measured]:
    """Train every strategy at the largest size on an emulated card, whatever the forecast says."""
    size, limit = _GPU_SIZES[-1], f"vram_limit_gib={_LIMIT_GIB}"
    return [
        train(_label(size, strategy), settings(*size, *_GPU_ROWS, f"memory={strategy}", limit))
        for strategy in STRATEGIES
        if not deadline.has_passed
    ]


def card_table(runs: Sequence[Measured]) -> str:
    """Return a table of the forecast for the card and the outcome of each run on it."""
    rows = []
    for run, strategy in zip(runs, STRATEGIES):
        chosen = settings(*_GPU_SIZES[-1], *_GPU_ROWS, f"memory={strategy}")
        (job,) = check_jobs(chosen, is_multirun=False, config_dir=None, config_name=None)
        refusal = over_budget(dataclasses.replace(job.config, vram_budget_gib=_LIMIT_GIB))
        peak = run.summary["memory"].get("measured", {}).get("allocated_gib")
        verdict = "fits" if refusal is None else f"refused: {refusal}"
        rows.append([strategy, verdict, run.summary["status"], "-" if peak is None else _gib(peak)])
    return table(["strategy", f"forecast for {_LIMIT_GIB} GiB", "forced", "peak"], rows)


def _label(size: tuple[int, int], strategy: str) -> str:
    width, depth = size
    return f"{depth} x {width}, {strategy}"


def where_it_matters() -> str:
    """Return the forecast saving of every strategy, and a note for which sizes it is too small.

    All numbers are forecasts; no device is needed.
    """
    rows, too_small = [], []
    context = cuda_context().num_bytes
    for name in ("tiny", "small", "medium", "large", "huge"):
        peaks = {}
        for strategy in STRATEGIES:
            overrides = [*_SETTINGS, *_GPU_ROWS, f"network={name}", f"memory={strategy}"]
            (job,) = check_jobs(overrides, is_multirun=False, config_dir=None, config_name=None)
            peaks[strategy] = forecast(job.config).peak.total
        most = peaks["co_resident"] - min(peaks.values())
        if most < context:
            too_small.append(name)
        rows.append([name, *(_gib(peak / _GIB) for peak in peaks.values()), _gib(most / _GIB)])
    # Against co_resident the host's Adam saves 8 B for each parameter of both networks.
    limit = context / 16 / 1e6
    return "\n\n".join(
        [
            table(["network", *STRATEGIES, "largest saving"], rows),
            f"CUDA's own context takes about {_gib(context / _GIB)} before the first tensor. With "
            f"{', '.join(too_small)} no strategy saves as much as that, at 16,384 samples per "
            "gradient step: choose by returns and speed. Adam's moments of two networks alone "
            f"outweigh it from about {limit:,.0f} million parameters per network on.",
        ]
    )


def on_gpu(sizes: Sequence[tuple[int, int]], deadline: Deadline) -> Iterator[str]:
    """Yield the parts of the page."""
    device = torch.device("cuda")
    limit = measure_bus(device)
    yield (
        f"{torch.cuda.get_device_name(device)}; bus {limit.h2d_bytes_per_s / 1e9:.1f} GB/s up, "
        f"{limit.d2h_bytes_per_s / 1e9:.1f} GB/s down, measured. {_WHAT}"
    )
    has_all = len(sizes) == len(_GPU_SIZES)
    # The largest size is trained once, on the emulated card: its limit changes no peak below it.
    runs = strategies(sizes[:-1] if has_all else sizes, _GPU_ROWS, deadline)
    on_card = small_card(deadline) if has_all else []
    whole = [
        # What did not fit is trained once more on the whole card, to measure what it takes.
        run
        if run.summary["status"] == Status.finished.value
        else train(run.label, settings(*_GPU_SIZES[-1], *_GPU_ROWS, f"memory={strategy}"))
        for run, strategy in zip(on_card, STRATEGIES)
        if run.summary["status"] == Status.finished.value or not deadline.has_passed
    ]
    left_out = len(sizes) * len(STRATEGIES) - len(runs) - len(whole)
    yield "## Every strategy\n\n" + sizes_table([*runs, *whole], is_cuda=True)
    if left_out:
        yield f"The time limit left out {left_out} runs."
    if has_all:
        yield (
            f"## A card of {_LIMIT_GIB} GiB\n\n12 x 8192, emulated by `vram_limit_gib`; forced "
            f"past the forecast by `vram_budget_gib=none`.\n\n{card_table(on_card)}"
        )


def on_cpu(sizes: Sequence[tuple[int, int]], deadline: Deadline) -> Iterator[str]:
    """Yield the parts of the page of a machine without a GPU."""
    yield (
        "**No GPU: nothing here was measured on one.** Bytes are those that the same program would "
        "hold and move there, counted on the CPU, where host and device are one memory; env "
        f"steps/s are the CPU's and compare nothing but its own arithmetic. {_WHAT}"
    )
    runs = strategies(sizes, _CPU_ROWS, deadline)
    yield "## Every strategy\n\n" + sizes_table(runs, is_cuda=False)


def parts(num_sizes: int | None, deadline: Deadline) -> Iterator[str]:
    """Yield the parts of the page as they are measured; None for all sizes and the forecasts."""
    if torch.cuda.is_available():
        yield from on_gpu(_GPU_SIZES[:num_sizes], deadline)
    else:
        yield from on_cpu(_CPU_SIZES[:num_sizes], deadline)
    if num_sizes is None:
        yield f"## Where it matters\n\n{where_it_matters()}"


def _gib(gib: float) -> str:
    return f"{gib:,.2f} GiB" if gib >= 1.0 else f"{gib * 1024:,.1f} MiB"


def _percent(value: float, base: float) -> str:
    return f"{value / base - 1.0:+.2%}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    parser.add_argument(
        "--limit-s", type=float, default=330.0, help="seconds after which no run is begun"
    )
    parser.add_argument("--sizes", type=int, help="only so many networks, the smallest")
    options = parser.parse_args(argv)
    register()
    found = parts(options.sizes, Deadline(options.limit_s))
    publish("memory", "Memory strategies", found, write=options.write)


if __name__ == "__main__":
    main()
