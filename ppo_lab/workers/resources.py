"""Resources of this machine: the number of workers, their CUDA devices, the lanes of a stack."""

from __future__ import annotations

import math
import os

import torch

from ppo_lab.config.run import Config
from ppo_lab.forecasting.budget import budget_bytes, resolve_memory
from ppo_lab.forecasting.forecast import forecast
from ppo_lab.utils.cores import usable_cores

__all__ = ["choose_lanes", "choose_num_workers"]

_CPU_LANES = 8
"""Their activations fit in a core's cache; more lanes are no faster."""
_MOST_LANES = 4096
_USED_FRAC = 0.9  # of the free device memory; the rest is reserve for the allocator


def choose_num_workers(num_workers: int | str, config: Config) -> tuple[int, list[str]]:
    """Return the number of worker processes and the CUDA devices to distribute among them.

    ``auto`` is one per GPU, or one per core that this process may use if ``config`` is on the CPU.
    ``device=cuda:N`` is that GPU only.
    """
    device = config.torch_device
    devices = _devices(device.index) if device.type == "cuda" else []
    if isinstance(num_workers, int):
        return num_workers, devices
    return len(devices) or usable_cores(), devices


def choose_lanes(
    max_lanes: int | str, config: Config, *, num_sharing: int = 1, num_seeds: int = 1
) -> int:
    """Return the most lanes of each stack of runs like ``config``; ``num_sharing`` share a GPU.

    ``auto`` is eight on a CPU, rounded up to a multiple of ``num_seeds``, a trial's lanes; on a GPU
    as many as fit into its free memory by forecast.
    """
    config = resolve_memory(config)
    if isinstance(max_lanes, int):
        return max_lanes
    if config.torch_device.type == "cpu":
        return math.ceil(_CPU_LANES / num_seeds) * num_seeds
    budget, planned = budget_bytes(config), forecast(config)
    if budget is None:
        return _MOST_LANES
    free = budget / num_sharing - planned.context.num_bytes - planned.workspace.num_bytes
    return max(1, min(_MOST_LANES, int(_USED_FRAC * free / planned.peak.total)))


def _devices(index: int | None) -> list[str]:
    """Return the names of the GPUs to use, as CUDA_VISIBLE_DEVICES lists them; ``index`` is one."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        names = visible.split(",")
    else:
        names = [str(number) for number in range(torch.cuda.device_count())]
    return names if index is None else [names[index]]
