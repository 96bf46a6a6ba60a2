"""Measure what PPO's clip, network size and memory strategy do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppo_lab.training.policy import load_policy

__all__ = ["__version__", "load_policy"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the module protocol's signature
    """Import ``load_policy`` on first use, since it imports torch."""
    if name == "load_policy":
        from ppo_lab.training.policy import load_policy

        return load_policy
    raise AttributeError(f"module 'ppo_lab' has no attribute {name!r}")
