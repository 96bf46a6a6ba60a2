"""Memory that a run needs, by category and network, before a device is used.

The tensors are counted in a dry run of the real program. What CUDA itself takes is listed
separately, each item with its source.
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass

import torch

from ppo_lab.config.lanes import LANE_KEYS, stack_values
from ppo_lab.config.run import Config
from ppo_lab.config.settings import ABOUT_A_RUN
from ppo_lab.forecasting.dry_run import DryRun, dry_run
from ppo_lab.memory import AutoMemory

__all__ = ["Forecast", "Overhead", "cublas_workspace", "cuda_context", "forecast", "try_forecast"]

log = logging.getLogger(__name__)

_MIB = 1024**2
_A100_CONTEXT = 501 * _MIB
_MOST_CONTEXT = 1024 * _MIB  # more than that includes another process on the GPU
_HOPPER_WORKSPACE = 4096 * 8 * 1024
_OLDER_WORKSPACE = (4096 * 2 + 16 * 8) * 1024
_WITHOUT_EFFECT = (*ABOUT_A_RUN, "device", "matmul_precision", "eval_every", "eval_episodes")
"""Keys that change no tensor's size. Of the keys that vary by lane, only being None or not does."""


@dataclass(frozen=True)
class Overhead:
    """Device memory that is not a tensor's."""

    name: str
    num_bytes: int
    source: str
    """Where the number comes from."""


@dataclass(frozen=True)
class Forecast(DryRun):
    """A dry run and the memory that CUDA itself takes."""

    workspace: Overhead
    """cuBLAS's; torch's allocator counts it with the tensors."""
    context: Overhead
    """CUDA's; torch's allocator does not count it."""

    @property
    def allocated(self) -> int:
        """The forecast of ``torch.cuda.max_memory_allocated``."""
        return self.peak.total + self.workspace.num_bytes

    @property
    def total(self) -> int:
        """What the GPU must have free before the run starts.

        Without what torch's allocator reserves beyond what is allocated: that depends on the order
        of sizes, and shrinks where memory is short.
        """
        return self.allocated + self.context.num_bytes


_forecasts: dict[str, Forecast] = {}


def forecast(config: Config) -> Forecast:
    """Forecast the memory and the bus traffic of a run, on a CPU and without allocating it.

    Takes seconds the first time. Configurations that differ only in what changes no tensor's size,
    such as seeds and learning rates, share one forecast. The run's device need not exist.

    Args:
        config: From ``compose``; ``memory=auto`` is resolved first.

    Returns:
        Bytes: ``total`` on the device, ``peak.by_category()``, ``bus.iteration`` over PCIe.

    Example:
        >>> from ppo_lab import compose, forecast
        >>> forecast(compose(["env=cartpole", "network=tiny"])).num_parameters
        {'actor': 4610, 'critic': 4545}
    """
    if isinstance(config.memory, AutoMemory):
        from ppo_lab.forecasting.budget import resolve_memory  # which compares forecasts

        config = resolve_memory(config)
    key = _key(config)
    if key not in _forecasts:
        counted = vars(dry_run(config))
        device = _card(config)
        _forecasts[key] = Forecast(
            **counted, workspace=cublas_workspace(device), context=cuda_context(device)
        )
    return _forecasts[key]


def _key(config: Config) -> str:
    shared = {k: v for k, v in stack_values(config).items() if k not in _WITHOUT_EFFECT}
    is_none = {key: getattr(config, key) is None for key in LANE_KEYS}
    return json.dumps([shared, is_none, str(_card(config))], sort_keys=True)


def _card(config: Config) -> torch.device | None:
    """Return the GPU that ``config`` names, or the current one; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    named = torch.device(config.device if config.device.startswith("cuda") else "cuda")
    is_here = (named.index or 0) < torch.cuda.device_count()
    return named if is_here else torch.device("cuda")


def try_forecast(config: Config) -> Forecast | None:
    """Return ``forecast(config)``; None, and a warning with the traceback, where it fails.

    A run may train without its forecast: a user's own network may, for example, ask a tensor for
    its value, which a fake tensor does not have.
    """
    try:
        return forecast(config)
    except Exception:
        log.warning("this run cannot be forecast", exc_info=True)
        return None


def cuda_context(device: torch.device | None = None) -> Overhead:
    """Return what CUDA itself takes on ``device``; None for a GPU that is not here."""
    if device is not None:
        free, total = torch.cuda.mem_get_info(device)
        used = total - free - torch.cuda.memory_reserved(device)
        if used <= _MOST_CONTEXT:
            return Overhead("CUDA context", used, "measured here")
    return Overhead("CUDA context", _A100_CONTEXT, "as AgileRL measured it on an A100; L4: 226 MiB")


def cublas_workspace(device: torch.device | None = None) -> Overhead:
    """Return two workspaces on ``device`` (None for a GPU that is not here).

    One for each thread that multiplies, forward and backward. Sizes: getChosenWorkspaceSize in
    aten/src/ATen/cuda/CublasHandlePool.cpp; the environment variable, as NVIDIA documents it
    (:SIZE:COUNT in KiB), replaces the default.
    """
    if chosen := os.environ.get("CUBLAS_WORKSPACE_CONFIG"):
        pairs = re.findall(r":(\d+):(\d+)", chosen)
        num_bytes = sum(int(size) * int(count) * 1024 for size, count in pairs)
        return Overhead("cuBLAS workspaces", 2 * num_bytes, "2 x CUBLAS_WORKSPACE_CONFIG")
    is_older = device is not None and torch.cuda.get_device_capability(device)[0] < 9
    num_bytes = _OLDER_WORKSPACE if is_older else _HOPPER_WORKSPACE
    card = "before Hopper" if is_older else "from Hopper on; 8 MiB each before"
    return Overhead("cuBLAS workspaces", 2 * num_bytes, f"2 threads, torch's default {card}")
