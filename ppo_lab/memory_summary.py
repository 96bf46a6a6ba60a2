"""What a summary says about memory: forecast, counted, measured; and why there was too little."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from ppo_lab.bus import use_metrics
from ppo_lab.config import Config
from ppo_lab.counted import CountedTrainer
from ppo_lab.ledger import Ledger
from ppo_lab.meters import peak_host_gib
from ppo_lab.trainer import Trainer
from ppo_lab.vram import CudaMemory

__all__ = ["device_section", "memory_section", "out_of_memory_line"]

_GIB = 1024**3


def memory_section(trainer: Trainer) -> dict[str, Any]:
    """Return a run's peaks in GiB: by category where it was counted, and as measured."""
    measured: dict[str, Any] = {"host_gib": peak_host_gib()}
    if (device := trainer.meters.memory.read()) is not None:
        measured["allocated_gib"] = device.peak_allocated / _GIB
        measured["reserved_gib"] = device.peak_reserved / _GIB
        peaks = trainer.meters.memory.phase_peaks
        measured["phases_gib"] = {name: peak / _GIB for name, peak in peaks.items()}
    is_counted = isinstance(trainer, CountedTrainer)
    counted = {"ledger": peak_section(trainer.ledger)} if is_counted else {}
    return counted | {"measured": measured}


def peak_section(ledger: Ledger) -> dict[str, Any]:
    """Return what a ledger saw at its peak, in GiB: by category, by network, and in the host."""
    peak, host = ledger.peak, ledger.host_peak
    return {
        "peak_gib": peak.total / _GIB,
        "moment": f"{peak.phase}: {peak.doing}",
        "categories_gib": {c.value: size / _GIB for c, size in peak.by_category().items()},
        "networks_gib": {
            f"{share.category.value}_{share.network}": num_bytes / _GIB
            for share, num_bytes in peak.shares.items()
            if share.network is not None
        },
        "phases_gib": {name: p.total / _GIB for name, p in ledger.phase_peaks.items()},
        "host_pinned_gib": host.pinned / _GIB,
        "host_pageable_gib": host.pageable / _GIB,
    }


def device_section(trainer: Trainer) -> dict[str, Any]:
    """Return what crossed the bus, and how the device spent the profiled window, if there was one.

    ``pcie`` holds bytes over the whole run; rates, and their share of the limit, while copying.
    """
    meters, traffic = trainer.meters, trainer.placement.traffic
    pcie: dict[str, Any] = dataclasses.asdict(traffic)
    perf: dict[str, Any] = {}
    if meters.bus is not None:
        pcie["h2d_limit_gb_per_s"] = meters.bus.h2d_bytes_per_s / 1e9
        pcie["d2h_limit_gb_per_s"] = meters.bus.d2h_bytes_per_s / 1e9
        for name, value in use_metrics(meters.use, meters.bus).items() if meters.use else ():
            family, _, key = name.partition("/")
            (perf if family == "perf" else pcie)[key] = value
    if perf:
        perf["window_phases"] = list(meters.used_phases)
    return {"pcie": pcie, "perf": perf} if perf else {"pcie": pcie}


def out_of_memory_line(config: Config, error: Exception, summary: Mapping[str, Any]) -> str:
    """Return in one line which memory was full, when, and what was held at most."""
    if isinstance(error, torch.OutOfMemoryError):
        side, facts = "device", _device_peak(config, summary)
    else:
        side, facts = "host", [f"peak {peak_host_gib() or 0.0:.2f} GiB"]
    phase = summary.get("stopped_in", "startup")
    return ": ".join([f"the {side} is out of memory in {phase}", ", ".join(facts)]).rstrip(": ")


def _device_peak(config: Config, summary: Mapping[str, Any]) -> list[str]:
    """Return the device's peak, and the limit if there was one."""
    peak_gib = summary["memory"].get("measured", {}).get("allocated_gib")
    if peak_gib is None and config.torch_device.type == "cuda":  # failed before the first phase
        peak_gib = CudaMemory(config.torch_device).read().peak_allocated / _GIB
    parts = [] if peak_gib is None else [f"peak {peak_gib:.2f} GiB"]
    if config.vram_limit_gib is not None:
        parts.append(f"limit {config.vram_limit_gib:g} GiB")
    return parts
