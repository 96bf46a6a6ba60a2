"""How much memory a configuration will need, by category and network, before a device is touched.

The tensors are counted in a dry run of the real program. What CUDA itself takes is no tensor of
ours: it stands beside them in lines of its own, each with its source.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from typing import Any

import torch

from ppo_lab.config.lanes import LANE_KEYS
from ppo_lab.config.run import Config
from ppo_lab.forecast.categories import HostBytes, Peak
from ppo_lab.forecast.dry_run import BusBytes, dry_run
from ppo_lab.utils.json_files import to_jsonable

__all__ = ["Forecast", "Overhead", "cublas_workspace_bytes", "cuda_context_bytes", "forecast"]

_MIB = 1024**2
_A100_CONTEXT = 501 * _MIB
_MOST_CONTEXT = 1024 * _MIB  # more than that is another process on the card
_HOPPER_WORKSPACE = 4096 * 8 * 1024
_OLDER_WORKSPACE = (4096 * 2 + 16 * 8) * 1024
_WITHOUT_EFFECT = (
    *("device", "num_threads", "total_steps", "profile", "forecast", "forecast_format"),
    *("vram_budget_gib", "vram_limit_gib", "matmul_precision"),
)
"""Keys that change no tensor's size. Of the lanes' own keys only whether they are none does."""


@dataclass(frozen=True)
class Overhead:
    """Device memory beside the tensors."""

    name: str
    num_bytes: int
    source: str


@dataclass(frozen=True)
class Forecast:
    """What one configuration will hold and move; all numbers are bytes."""

    peak: Peak
    """Of the tensors on the device."""
    phase_peaks: dict[str, Peak]
    host_peak: HostBytes
    bus: BusBytes
    num_parameters: dict[str, int]
    """By network."""
    workspace: Overhead
    """cuBLAS's: torch's allocator counts it with the tensors."""
    context: Overhead
    """CUDA's own: no allocator of torch knows of it."""

    @property
    def allocated(self) -> int:
        """What ``torch.cuda.max_memory_allocated`` will say."""
        return self.peak.total + self.workspace.num_bytes

    @property
    def total(self) -> int:
        """What the card must have free, before the first tensor.

        What torch's allocator will hold in reserve beyond what is allocated is not in it: that
        depends on the order of sizes, and shrinks where memory is short.
        """
        return self.allocated + self.context.num_bytes


_forecasts: dict[str, Forecast] = {}


def forecast(config: Config) -> Forecast:
    """Return the forecast of ``config``: seconds the first time, nothing for the same one again.

    Seeds, learning rates and other numbers that change no tensor's size share one.
    """
    key = _key(config)
    if key not in _forecasts:
        dry = dry_run(config)
        device = torch.device("cuda") if torch.cuda.is_available() else None
        _forecasts[key] = Forecast(
            peak=dry.ledger.peak,
            phase_peaks=dry.ledger.phase_peaks,
            host_peak=dry.ledger.host_peak,
            bus=dry.bus,
            num_parameters=dry.num_parameters,
            workspace=_workspace(device),
            context=_context(device),
        )
    return _forecasts[key]


def _key(config: Config) -> str:
    values: dict[str, Any] = to_jsonable(dataclasses.asdict(config))
    for key in LANE_KEYS & values.keys():
        values[key] = values[key] is None
    for key in _WITHOUT_EFFECT:
        del values[key]
    return json.dumps([config.memory.name, type(config.network).__name__, values], sort_keys=True)


def cuda_context_bytes(device: torch.device | None = None) -> int:
    """Return what CUDA takes for itself on ``device``; None for a card that is not here."""
    return _context(device).num_bytes


def cublas_workspace_bytes(device: torch.device | None = None) -> int:
    """Return what cuBLAS takes on ``device``; None for a card that is not here."""
    return _workspace(device).num_bytes


def _context(device: torch.device | None) -> Overhead:
    if device is not None and device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used = total - free - torch.cuda.memory_reserved(device)
        if used <= _MOST_CONTEXT:
            return Overhead("CUDA context", used, "measured here")
    return Overhead("CUDA context", _A100_CONTEXT, "as AgileRL measured it on an A100; L4: 226 MiB")


def _workspace(device: torch.device | None) -> Overhead:
    """Return two workspaces: one for each thread that multiplies, forward and backward.

    Sizes: aten/src/ATen/cuda/CublasHandlePool.cpp, getChosenWorkspaceSize; a variable as NVIDIA
    documents it, :SIZE:COUNT in KiB, replaces the default.
    """
    if chosen := os.environ.get("CUBLAS_WORKSPACE_CONFIG"):
        pairs = re.findall(r":(\d+):(\d+)", chosen)
        num_bytes = sum(int(size) * int(count) * 1024 for size, count in pairs)
        return Overhead("cuBLAS workspaces", 2 * num_bytes, "2 x CUBLAS_WORKSPACE_CONFIG")
    is_older = device is not None and device.type == "cuda" and _major(device) < 9
    num_bytes = _OLDER_WORKSPACE if is_older else _HOPPER_WORKSPACE
    card = "before Hopper" if is_older else "from Hopper on; 8 MiB each before"
    return Overhead("cuBLAS workspaces", 2 * num_bytes, f"2 threads, torch's default {card}")


def _major(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]
