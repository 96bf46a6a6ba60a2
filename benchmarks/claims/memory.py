"""What the critic takes of a GPU's memory, and what crosses the bus: forecasts, no GPU needed."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np

from benchmarks.claims.pictures import COLOURS, axes, save
from benchmarks.result_page import table
from ppo_lab.config.compose import check_jobs
from ppo_lab.forecasting.categories import Category
from ppo_lab.forecasting.forecast import Forecast, forecast

__all__ = ["bus", "memory"]

_GIB = 1024**3
_NETWORKS = ("small", "medium", "large", "huge")
_STRATEGIES = ("co_resident", "offloaded_optimizer", "parked", "shared_trunk")
_ROWS = (
    "env=cartpole",
    "num_envs=1024",
    "num_steps=32",
    "num_minibatches=8",
    "total_steps=10_000_000",
)
_SHOWN = ("weights", "gradients", "optimizer", "activations", "rollout")
_SAMPLES = (64, 256, 1024, 4096, 16384, 65536)
_BUS_GB_PER_S = 55.0  # PCIe 5 x16, pinned, as nvbandwidth prints it for an H100
_FLOP_PER_S = 495e12  # H200, TF32, dense, by its data sheet
_FLOP_PER_PARAMETER = 6  # of a sample: 2 forward, 4 backward


def _forecast(*overrides: str) -> Forecast:
    (job,) = check_jobs(
        [*_ROWS, "total_steps=10_000_000", *overrides],
        is_multirun=False,
        config_dir=None,
        config_name=None,
    )
    return forecast(job.config)


def memory() -> list[str]:
    """How much is the critic's, by network and strategy?"""
    figure, panels = axes([f"network={name}" for name in _NETWORKS], height=3.4)
    rows = []
    for panel, network in zip(panels, _NETWORKS):
        peaks = [_forecast(f"network={network}", f"memory={name}").peak for name in _STRATEGIES]
        below = np.zeros(len(peaks))
        for colour, name in zip(COLOURS, _SHOWN):
            gib = np.array([peak.by_category()[Category(name)] for peak in peaks]) / _GIB
            panel.bar(_STRATEGIES, gib, bottom=below, color=colour, label=name)
            below += gib
        rest = np.array([peak.total for peak in peaks]) / _GIB - below
        panel.bar(_STRATEGIES, rest, bottom=below, color="lightgrey", label="rest")
        panel.set_xticks(range(len(_STRATEGIES)), [name.replace("_", "\n") for name in _STRATEGIES])
        panel.tick_params(axis="x", labelsize=6)
        critic = sum(
            num_bytes for key, num_bytes in peaks[0].by_key.items() if key.network == "critic"
        )
        rows.append([
            network,
            *(f"{peak.total / _GIB:.3g}" for peak in peaks),
            f"{critic / peaks[0].total:.0%}",
        ])  # fmt: skip
    panels[0].set_ylabel("GiB at the peak", fontsize=8)
    panels[1].legend(frameon=False, fontsize=7)
    save(figure, "memory")
    return [
        "## The critic's memory",
        f"Forecast peaks of the tensors in GiB, `{' '.join(_ROWS)}`; the critic's share is that of "
        "`co_resident`, of what belongs to a network.",
        table(["network", *_STRATEGIES, "critic's share"], rows),
    ]


def bus() -> list[str]:
    """What crosses the bus, and can computing hide it?"""
    rows, shares = [], {name: list[float]() for name in _STRATEGIES[1:3]}
    for samples in _SAMPLES:
        cells = []
        for name in shares:
            sizes = ("num_envs=1024", f"num_steps={8 * samples // 1024 or 1}")
            if samples < 128:
                sizes = (f"num_envs={8 * samples}", "num_steps=1")
            planned = _forecast(
                "network=large", f"memory={name}", *sizes, "num_epochs=4", "separate_grad_clip=true"
            )
            moved = planned.bus.iteration
            bus_s = max(moved.h2d_bytes, moved.d2h_bytes) / (_BUS_GB_PER_S * 1e9)
            num_parameters = sum(planned.num_parameters.values())
            compute_s = _FLOP_PER_PARAMETER * num_parameters * 4 * 8 * samples / _FLOP_PER_S
            shares[name].append(bus_s / compute_s)
            gib = (moved.h2d_bytes + moved.d2h_bytes) / _GIB
            cells += [f"{gib:.2f}", f"{bus_s * 1e3:.0f}", f"{compute_s * 1e3:.1f}"]
        rows.append([f"{samples:,}", *cells])
    figure, (panel,) = axes(["bus time over compute time"], height=3.4)
    for colour, (name, values) in zip(COLOURS, shares.items()):
        panel.plot(_SAMPLES, values, marker="o", markersize=3, color=colour, label=name)
    panel.axhline(1.0, color="grey", linewidth=1, linestyle="--")
    panel.set(xscale="log", yscale="log")
    panel.set_xlabel("samples per gradient step", fontsize=8)
    panel.yaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
    panel.legend(frameon=False, fontsize=8)
    save(figure, "bus")
    header = ["samples per gradient step"]
    header += [f"{name}: {what}" for name in shares for what in ("GiB", "bus ms", "compute ms")]
    return [
        "## The bus",
        "Per iteration of 4 epochs of 8 minibatches, `network=large`. Bytes are counted in a dry "
        f"run. Times are computed, not measured: {_BUS_GB_PER_S:g} GB/s in each direction at the "
        f"same time (PCIe 5), {_FLOP_PER_PARAMETER} operations per parameter and sample at "
        f"{_FLOP_PER_S / 1e12:g} TFLOP/s (TF32). The optimizer's own time on the host is not "
        "included.",
        table(header, rows),
    ]
