"""How many trials a machine takes at a time, in how many lanes, and which device each one sees."""

from __future__ import annotations

import math
import os

import torch

from ppo_lab.config.run import Config
from ppo_lab.forecast.budget import budget_bytes, resolve_memory
from ppo_lab.forecast.forecast import forecast

__all__ = ["choose_lanes", "choose_num_workers"]

_CPU_LANES = 8
"""Their activations stay in a core's cache; more lanes gain nothing there."""
_MOST_LANES = 4096
_USED_FRAC = 0.9  # of the free device memory: allocators keep some in reserve


def choose_num_workers(num_slots: int | str, config: Config) -> tuple[int, list[str]]:
    """Return the number of slots and the CUDA devices to share out among them.

    ``auto`` is one per GPU, or one per core this process may use where trials run on the CPU.
    """
    devices = _devices() if config.torch_device.type == "cuda" else []
    if isinstance(num_slots, int):
        return num_slots, devices
    return len(devices) or len(os.sched_getaffinity(0)), devices


def choose_lanes(
    max_lanes: int | str, config: Config, *, num_sharing: int = 1, num_seeds: int = 1
) -> int:
    """Return the lanes of each stack of runs like ``config``; a stack of one-lane runs has one.

    ``auto`` is eight on a CPU, or the next multiple of the ``num_seeds`` that take their lanes
    together, and as many as the forecast fits into a GPU's free memory, which ``num_sharing``
    stacks share.
    """
    config = resolve_memory(config)
    if isinstance(max_lanes, int):
        return max_lanes
    if config.torch_device.type == "cpu":
        return math.ceil(_CPU_LANES / num_seeds) * num_seeds
    budget, planned = budget_bytes(config), forecast(config)
    if budget is None:
        return _MOST_LANES
    room = budget / num_sharing - planned.context.num_bytes - planned.workspace.num_bytes
    return max(1, min(_MOST_LANES, int(_USED_FRAC * room / planned.peak.total)))


def _devices() -> list[str]:
    """Return the names of the GPUs this process may use, as CUDA_VISIBLE_DEVICES lists them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    return [str(index) for index in range(torch.cuda.device_count())]
