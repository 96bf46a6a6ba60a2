"""How many trials a machine takes at a time, and which device each of them sees."""

from __future__ import annotations

import os

import torch

from ppo_lab.config import Config

__all__ = ["choose_slots"]


def choose_slots(num_slots: int | str, config: Config) -> tuple[int, list[str]]:
    """Return the number of slots and the CUDA devices to share out among them.

    ``auto`` is one per GPU, or one per core this process may use where trials run on the CPU.
    """
    devices = _devices() if config.torch_device.type == "cuda" else []
    if isinstance(num_slots, int):
        return num_slots, devices
    return len(devices) or len(os.sched_getaffinity(0)), devices


def _devices() -> list[str]:
    """Return the names of the GPUs this process may use, as CUDA_VISIBLE_DEVICES lists them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    return [str(index) for index in range(torch.cuda.device_count())]
