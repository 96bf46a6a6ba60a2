"""``Hungry-v0``: CartPole that asks for more memory than there is, if it was reset with some seed.

The error is the allocator's own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import gymnasium
import torch
from gymnasium.envs.classic_control import CartPoleEnv

__all__ = ["Hungry"]

_STEP = 100
_NUM_BYTES = 1 << 50


class Hungry(CartPoleEnv):
    """Asks for a PiB in its 100th step if it was first reset with one of the seeds ``hungry``."""

    def __init__(self, hungry: Collection[int] = ()) -> None:
        """Note who is hungry."""
        super().__init__()
        self._hungry, self._num_steps, self._is_hungry = frozenset(hungry), 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
        """Begin an episode; a seed says whether this environment is hungry."""
        if seed is not None:
            self._is_hungry = seed in self._hungry
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:  # noqa: ANN401
        """Take a step, or ask for too much."""
        self._num_steps += 1
        if self._is_hungry and self._num_steps == _STEP:
            torch.empty(_NUM_BYTES, dtype=torch.uint8)
        return super().step(action)  # type: ignore[no-untyped-call]


gymnasium.register("Hungry-v0", Hungry, max_episode_steps=500)  # type: ignore[arg-type]
