"""Warnings about the first steps of environments, from comparisons too slow for every step.

Shapes: n = environments, O = observation size, A = action size.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

__all__ = ["FirstSteps"]

log = logging.getLogger(__name__)

_NUM_STEPS = 128
_INSIDE_FRAC = 0.01  # of a dimension's actions; below it practically all are clipped

Array = np.ndarray[Any, Any]


class FirstSteps:
    """Watches observations against their declared bounds, and how many actions are clipped."""

    def __init__(self, space_low: Array, space_high: Array, num_envs: int) -> None:
        """Watch ``num_envs`` environments a lane, with observations in a box of bounds (O,)."""
        self._low, self._high, self._num_envs = space_low, space_high, num_envs
        self._num_inside: Array | int = 0  # (A,) actions that were not clipped
        self._num_actions = self._step = 0
        self._warns_of_bounds = True

    @property
    def are_over(self) -> bool:
        """Whether there is nothing left to watch."""
        return self._step >= _NUM_STEPS

    def see_observations(self, observations: Array) -> None:
        """Count a step; warn once of an observation (n, O) outside of its bounds."""
        self._step += 1
        outside = (observations < self._low) | (observations > self._high)
        outside &= np.isfinite(observations)
        if not (self._warns_of_bounds and outside.any()):
            return
        self._warns_of_bounds = False
        row, component = np.argwhere(outside)[0]
        low, high = self._low[component], self._high[component]
        log.warning(
            "environment %d, step %d: observation[%d] = %g, declared is %g to %g; "
            "correct the environment's observation_space",
            *(row % self._num_envs, self._step, component, observations[row, component], low, high),
        )

    def see_actions(self, sampled: Array, clipped: Array, low: Array, high: Array) -> None:
        """Count actions (n, A); after the last step, warn if all of a dimension were clipped."""
        self._num_inside = self._num_inside + (sampled == clipped).sum(0)
        self._num_actions += len(sampled)
        if self._step < _NUM_STEPS - 1:
            return
        inside_frac = np.asarray(self._num_inside) / self._num_actions
        if inside_frac.min() < _INSIDE_FRAC:
            worst = int(inside_frac.argmin())
            log.warning(
                "action[%d]: %.0f %% of the samples lay outside of %g to %g and were clipped; an "
                "untrained policy samples around 0 with deviation 1. Rescale the actions: "
                "gymnasium.wrappers.RescaleAction(env, -1, 1)",
                *(worst, 100 * (1 - inside_frac[worst]), low[worst], high[worst]),
            )
