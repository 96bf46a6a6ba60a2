"""Host buffers of environments that are stepped on the host, and their transfers to the device.

Shapes: L = lanes, N = environments per lane, O = observation size, A = action size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.envs.base import Env, EnvSpec, Step

__all__ = ["DryEnv"]


class DryEnv(Env):
    """Host buffers and transfers of environments, without the environments; no episode ever ends.

    One transfer per step carries observations and rewards, packed into one row per environment.
    Flags and last observations are sent only in steps that ended an episode.
    """

    def __init__(
        self, spec: EnvSpec, num_lanes: int, num_envs: int, placement: Placement, dtype: torch.dtype
    ) -> None:
        """Allocate the buffers of n environments of ``spec``, pinned for CUDA."""
        self.spec, self.num_lanes, self.num_envs = spec, num_lanes, num_envs
        self.device, self._placement, self._dtype = placement.device, placement, dtype
        host_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        shape, size, empty = (num_lanes, num_envs), spec.observation_size, placement.empty_host
        self._packed = empty(*shape, size + 1, dtype=host_dtype, pin=True)
        self._last = empty(*shape, size, dtype=host_dtype, pin=True)
        self._flags = empty(2, *shape, dtype=torch.bool, pin=True)  # terminated, truncated
        self._no_flags = torch.zeros(shape, dtype=torch.bool, device=self.device)

    def reset(self) -> Tensor:
        """Return the buffer's observations (L, N, O) on the device."""
        return self._to_device(self._packed)[..., :-1]

    def reset_lane(self, lane: int, seed: int, *, is_same_run: bool = False) -> Tensor:  # noqa: ARG002
        """Return the buffer's observations (L, N, O) on the device."""
        return self.reset()

    def begin_episodes(self, keys: Tensor, group_size: int) -> Tensor:  # noqa: ARG002
        """Return the buffer's observations (L, N, O); the keys are copied to the host."""
        self._placement.move(keys, Place.host)
        return self.reset()

    def step(self, actions: Tensor) -> Step:
        """Advance by one step; actions are int64 (L, N) or float (L, N, A)."""
        has_ended = self._step_rows(self._placement.move(actions, Place.host))
        packed = self._to_device(self._packed)
        observations, rewards = packed[..., :-1], packed[..., -1]  # (L, N, O), (L, N)
        if not has_ended:
            no = self._no_flags
            return Step(observations, rewards, rewards, no, no, observations)
        terminated, truncated = self._placement.move(self._flags, Place.device)
        last = self._to_device(self._last)
        return Step(observations, rewards, rewards, terminated, truncated, last)

    def _step_rows(self, actions: Tensor) -> bool:  # noqa: ARG002
        """Write a step of host ``actions`` to the buffers; return whether an episode ended."""
        return False

    def _to_device(self, rows: Tensor) -> Tensor:
        """Return a copy of ``rows`` on the device, in the requested dtype."""
        moved = self._placement.move(rows, Place.device)
        return moved if moved.dtype == self._dtype else moved.to(self._dtype)
