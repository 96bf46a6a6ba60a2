"""A run summary's sections on memory and bus, and the message of a run out of memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ppo_lab.config.run import Config
from ppo_lab.devices.meters import peak_host_gib
from ppo_lab.devices.pcie import use_metrics
from ppo_lab.forecasting.budget import advice
from ppo_lab.forecasting.counting import ledger_of
from ppo_lab.forecasting.forecast import Forecast, try_forecast
from ppo_lab.forecasting.ledger import Ledger
from ppo_lab.training.trainer import Trainer

__all__ = ["device_section", "forecast_section", "memory_section", "out_of_memory_line"]

_GIB = 1024**3


def memory_section(trainer: Trainer) -> dict[str, Any]:
    """Return a run's peaks in GiB.

    ``measured`` by the operating system and, on CUDA, by torch's allocator; ``ledger``, by category
    and network, where the run was counted.
    """
    measured: dict[str, Any] = {"host_gib": peak_host_gib()}
    if (device := trainer.meters.memory.read()) is not None:
        measured["allocated_gib"] = device.peak_allocated / _GIB
        measured["reserved_gib"] = device.peak_reserved / _GIB
        peaks = trainer.meters.memory.phase_peaks
        measured["phases_gib"] = {name: peak / _GIB for name, peak in peaks.items()}
    if (ledger := ledger_of(trainer)) is None:
        return {"measured": measured}
    return {"ledger": _peak_section(ledger), "measured": measured}


def forecast_section(config: Config) -> dict[str, Any]:
    """Return the forecast in the form of ``memory_section``'s ledger, with CUDA's part and the bus.

    Empty where the run cannot be forecast.
    """
    if (planned := try_forecast(config)) is None:
        return {}
    return _peak_section(planned) | {
        "workspace_gib": planned.workspace.num_bytes / _GIB,
        "context_gib": planned.context.num_bytes / _GIB,
        "allocated_gib": planned.allocated / _GIB,
        "total_gib": planned.total / _GIB,
        "h2d_bytes_per_iteration": planned.bus.iteration.h2d_bytes,
        "d2h_bytes_per_iteration": planned.bus.iteration.d2h_bytes,
    }


def _peak_section(counted: Ledger | Forecast) -> dict[str, Any]:
    """Return a peak in GiB by category, network and phase, and the host's own peak."""
    peak, host = counted.peak, counted.host_peak
    return {
        "peak_gib": peak.total / _GIB,
        "moment": f"{peak.phase}: {peak.doing}",
        "categories_gib": {c.value: size / _GIB for c, size in peak.by_category().items()},
        "networks_gib": {
            f"{key.category.value}_{key.network}": num_bytes / _GIB
            for key, num_bytes in peak.by_key.items()
            if key.network is not None
        },
        "phases_gib": {name: p.total / _GIB for name, p in counted.phase_peaks.items()},
        "host_pinned_gib": host.pinned / _GIB,
        "host_pageable_gib": host.pageable / _GIB,
    }


def device_section(trainer: Trainer) -> dict[str, Any]:
    """Return the bus traffic, and the use of the device in the profiled window, if there was one.

    ``pcie``: bytes over the whole run; rates in GB/s while copying, and their share of the limit.
    ``perf``: shares of the window.
    """
    meters = trainer.meters
    section: dict[str, dict[str, Any]] = {"pcie": dataclasses.asdict(trainer.placement.traffic)}
    if meters.bus is not None:
        section["pcie"]["h2d_limit_gb_per_s"] = meters.bus.h2d_bytes_per_s / 1e9
        section["pcie"]["d2h_limit_gb_per_s"] = meters.bus.d2h_bytes_per_s / 1e9
        if meters.use is not None:
            section["perf"] = {"window_phases": list(meters.used_phases)}
            for name, value in use_metrics(meters.use, meters.bus).items():
                family, _, key = name.partition("/")
                section[family][key] = value
    return section


def out_of_memory_line(config: Config, error: BaseException, summary: Mapping[str, Any]) -> str:
    """Return which memory was full in which phase, with sizes and a change that needs less.

    A ``torch.OutOfMemoryError`` means the device is full, any other ``error`` the host; ``summary``
    is that of the run so far.
    """
    if isinstance(error, torch.OutOfMemoryError):
        side, facts = "device", [*_device_facts(config, summary)]
    else:
        side, facts = "host", [f"peak {peak_host_gib() or 0.0:.2f} GiB"]
    reason = f"the {side} is out of memory in {summary.get('stopped_in', 'startup')}"
    return f"{reason}: {', '.join(facts)}" if facts else reason


def _device_facts(config: Config, summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield forecast, measured peak, limit, and the best change of those that fit, or of all."""
    if (planned := try_forecast(config)) is not None:
        yield f"forecast {planned.allocated / _GIB:.2f} GiB"
    is_cuda = config.torch_device.type == "cuda"
    peak_gib = summary["memory"].get("measured", {}).get("allocated_gib")
    if peak_gib is None and is_cuda:  # failed before the first phase
        peak_gib = torch.cuda.max_memory_allocated(config.torch_device) / _GIB
    if peak_gib is not None:
        yield f"peak {peak_gib:.2f} GiB"
    limit_gib = config.vram_limit_gib
    if limit_gib is None and is_cuda:
        limit_gib = torch.cuda.get_device_properties(config.torch_device).total_memory / _GIB
    if limit_gib is not None:
        yield f"limit {limit_gib:.4g} GiB"
    if planned is not None and (changes := advice(config)):
        enough = [c for c in changes if limit_gib is None or c.total <= limit_gib * _GIB]
        yield f"less with {(enough or changes)[0]}"
