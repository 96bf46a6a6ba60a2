"""Measure what PPO's clip, network size and memory strategy do."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppo_lab.config.from_python import compose
    from ppo_lab.forecasting.forecast import forecast
    from ppo_lab.runner.frames import load_runs
    from ppo_lab.runner.run import train
    from ppo_lab.training.policy import load_policy

__all__ = ["__version__", "compose", "forecast", "load_policy", "load_runs", "train"]
__version__ = "0.1.0"

_MODULES = {
    "compose": "config.from_python",
    "forecast": "forecasting.forecast",
    "load_policy": "training.policy",
    "load_runs": "runner.frames",
    "train": "runner.run",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the module protocol's signature
    """Import a function on first use, since all of them import torch."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"ppo_lab.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'ppo_lab' has no attribute {name!r}")
