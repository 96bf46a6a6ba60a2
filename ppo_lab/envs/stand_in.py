"""What stands in for a Gymnasium environment in a dry run: the same tensors, and no environment.

Shapes: L = lanes, N = environments per lane, O = observation size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppo_lab.devices.placement import Placement
from ppo_lab.envs.base import EnvSpec
from ppo_lab.envs.gymnasium_backend import GymnasiumEnv

__all__ = ["StandInEnv"]


class StandInEnv(GymnasiumEnv):
    """Sends the rows that ``GymnasiumEnv`` would send, without values; no episode ever ends."""

    def __init__(
        self,
        spec: EnvSpec,
        *,
        num_lanes: int,
        num_envs: int,
        placement: Placement,
        dtype: torch.dtype,
    ) -> None:
        """Look like n environments of ``spec``."""
        self.spec, self.num_lanes, self.num_envs = spec, num_lanes, num_envs
        self.device, self._placement, self._dtype = placement.device, placement, dtype
        self._allocate_rows()

    def reset(self) -> Tensor:
        """Return the first observations (L, N, O)."""
        return self._to_device(self._packed)[..., :-1]

    def close(self) -> None:
        """Nothing is open."""

    def _step_rows(self, actions: Tensor) -> list[int]:  # noqa: ARG002 - nobody acts
        return []
