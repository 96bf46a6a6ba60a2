"""Any Gymnasium environment, stepped on the host; its tensors are moved to the training device.

Gymnasium is imported only when needed: a run on native environments never loads it.

Shapes: L = lanes, N = environments per lane, n = L * N (lane-major), O = observation size, A =
action size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.envs.base import ContinuousActions, DiscreteActions, Env, EnvSpec, Step
from ppo_lab.envs.gymnasium_spec import spec_of_env
from ppo_lab.utils.rng import Stream, bits, lane_keys

if TYPE_CHECKING:
    import gymnasium

__all__ = ["DryEnv", "GymnasiumEnv", "env_seeds"]


def env_seeds(seeds: Tensor, num_envs: int) -> list[int]:
    """Return n seeds in [0, 2^31), each a function of its lane's seed (L,) and its index alone."""
    numbers = bits(lane_keys(seeds.cpu(), Stream.ENV), num_envs) & 0x7FFF_FFFF
    return [int(number) for number in numbers.flatten().tolist()]


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

    def reset_lane(self, lane: int, seed: int) -> Tensor:  # noqa: ARG002
        """Return the buffer's observations (L, N, O) on the device."""
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


class GymnasiumEnv(DryEnv):
    """L * N environments in one process, with autoreset in the same step.

    The loop over environments is that of gymnasium's ``SyncVectorEnv`` in mode SAME_STEP, without
    merging the info dictionaries, which are not used: of HalfCheetah's 405 us per step (8
    environments, 2 shared cores) that was 60.
    """

    def __init__(
        self,
        env_id: str,
        seeds: Tensor,
        num_envs: int,
        placement: Placement,
        dtype: torch.dtype = torch.float32,
        *,
        max_episode_steps: int | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Build n environments from ``seeds`` (L,), on the host; call ``reset`` next."""
        import gymnasium

        num_lanes = seeds.shape[0]
        self._envs: list[gymnasium.Env[Any, Any]] = [
            gymnasium.make(env_id, max_episode_steps=max_episode_steps, **(kwargs or {}))
            for _ in range(num_lanes * num_envs)
        ]
        spec = spec_of_env(env_id, self._envs[0])
        super().__init__(spec, num_lanes, num_envs, placement, dtype)
        if isinstance(spec.actions, ContinuousActions):
            dtype_of_box = self._envs[0].action_space.dtype
            self._low = np.array(spec.actions.low, dtype_of_box)
            self._high = np.array(spec.actions.high, dtype_of_box)
        self._seeds = env_seeds(seeds, num_envs)
        self._view_buffers()

    def _view_buffers(self) -> None:
        """Create NumPy views of the buffers, with one row per environment in its own shape."""
        observation_shape = self._envs[0].observation_space.shape or ()
        num_rows, size = len(self._envs), self.spec.observation_size
        packed = self._packed.numpy().reshape(num_rows, size + 1)
        self._observation_rows = packed[:, :size].reshape(num_rows, *observation_shape)
        self._reward_rows = packed[:, size]
        self._last_rows = self._last.numpy().reshape(num_rows, *observation_shape)
        self._flag_rows = self._flags.numpy().reshape(2, num_rows)
        assert np.shares_memory(self._observation_rows, packed)

    def reset(self) -> Tensor:
        """Start all episodes from the seeds; return the first observations (L, N, O)."""
        self._reset_rows(range(len(self._envs)))
        return super().reset()

    def reset_lane(self, lane: int, seed: int) -> Tensor:
        """Restart one lane as if built with ``seed``; return all observations (L, N, O)."""
        rows = range(lane * self.num_envs, (lane + 1) * self.num_envs)
        self._seeds[rows.start : rows.stop] = env_seeds(torch.tensor([seed]), self.num_envs)
        self._reset_rows(rows)
        return super().reset()

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _reset_rows(self, rows: range) -> None:
        for row in rows:
            self._observation_rows[row] = self._envs[row].reset(seed=self._seeds[row])[0]

    def _step_rows(self, actions: Tensor) -> bool:
        ended: list[int] = []  # rows whose episode ended
        for row, action in enumerate(self._env_actions(actions)):
            observation, reward, terminated, truncated, _ = self._envs[row].step(action)
            if terminated or truncated:
                if not ended:
                    self._flag_rows[:] = False
                ended.append(row)
                self._flag_rows[:, row] = terminated, truncated and not terminated
                self._last_rows[row] = observation  # before reset, which may reuse the array
                observation, _ = self._envs[row].reset()
            self._observation_rows[row] = observation
            self._reward_rows[row] = reward
        if ended:
            continues = np.ones(len(self._envs), dtype=np.bool_)
            continues[ended] = False
            self._last_rows[continues] = self._observation_rows[continues]
        return bool(ended)

    def _env_actions(self, actions: Tensor) -> np.ndarray[Any, Any]:
        """Return host ``actions`` as the environments take them: (n,) from ``start``, or (n, A)."""
        on_host = actions.flatten(0, 1).numpy()
        if isinstance(self.spec.actions, DiscreteActions):
            start = self.spec.actions.start
            return on_host + start if start else on_host
        return np.minimum(np.maximum(on_host, self._low), self._high)  # twice as fast as np.clip
