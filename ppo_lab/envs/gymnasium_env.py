"""Any Gymnasium environment, stepped on the host; its tensors are moved to the training device.

Gymnasium is imported only when needed: a run on native environments never loads it.

Shapes: L = lanes, N = environments per lane, n = L * N (lane-major), O = observation size, A =
action size.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.envs.base import ContinuousActions, DiscreteActions
from ppo_lab.envs.dry_env import DryEnv
from ppo_lab.envs.first_steps import FirstSteps
from ppo_lab.envs.guard import EnvGuard
from ppo_lab.envs.gymnasium_spec import make_env, remember_spec, spec_of_env
from ppo_lab.envs.returned import (
    STEP_FORM,
    WrongReturn,
    as_flag,
    as_observation,
    as_reward,
    described,
    infinite_component,
    reset_observation,
)
from ppo_lab.envs.snapshots import is_exact, restore, snapshot
from ppo_lab.utils.rng import Stream, bits, lane_keys

if TYPE_CHECKING:
    import gymnasium

__all__ = ["GymnasiumEnv", "env_seeds"]

log = logging.getLogger(__name__)

_MANY_STEPS = 10_000  # of an environment; few tasks have longer episodes and no time limit
_FEW_STEPS = 100  # a run this short need not contain the end of an episode


def env_seeds(seeds: Tensor, num_envs: int) -> list[int]:
    """Return n seeds in [0, 2^31), each a function of its lane's seed (L,) and its index alone."""
    numbers = bits(lane_keys(seeds.cpu(), Stream.ENV), num_envs) & 0x7FFF_FFFF
    return [int(number) for number in numbers.flatten().tolist()]


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
        timeout_s: float | None = None,
    ) -> None:
        """Build n environments from ``seeds`` (L,), on the host; call ``reset`` next.

        Like all methods, raises ``EnvironmentFault`` where an environment raises an error, returns
        what it did not declare, or takes longer than ``timeout_s``.
        """
        num_lanes, kwargs = seeds.shape[0], kwargs or {}
        self._make_env = partial(make_env, env_id, kwargs, max_episode_steps)
        self._seeds = env_seeds(seeds, num_envs)
        self._guard = EnvGuard(num_lanes, num_envs, timeout_s)
        weakref.finalize(self, self._guard.close)
        self._envs: list[gymnasium.Env[Any, Any]] = []
        self._num_episodes = [0] * num_lanes
        self._infinite_lanes: set[int] = set()  # that have been logged
        try:
            for row in range(num_lanes * num_envs):
                with self._guard("building", row):
                    self._envs.append(self._make_env())
            spec = spec_of_env(env_id, self._envs[0])
        except BaseException:
            self.close()
            raise
        remember_spec(env_id, kwargs, spec)
        super().__init__(spec, num_lanes, num_envs, placement, dtype)
        if isinstance(spec.actions, ContinuousActions):
            dtype_of_box = self._envs[0].action_space.dtype
            self._low = np.array(spec.actions.low, dtype_of_box)
            self._high = np.array(spec.actions.high, dtype_of_box)
        self._view_buffers()

    def _view_buffers(self) -> None:
        """Create NumPy views of the buffers, with one row per environment in its own shape."""
        space, self._shape = self._envs[0].observation_space, self.spec.shape
        num_rows, size = len(self._envs), self.spec.observation_size
        self._rows = self._packed.numpy().reshape(num_rows, size + 1)
        self._observation_rows = self._rows[:, :size].reshape(num_rows, *self._shape)
        self._reward_rows = self._rows[:, size]
        self._last_rows = self._last.numpy().reshape(num_rows, *self._shape)
        self._flag_rows = self._flags.numpy().reshape(2, num_rows)
        assert np.shares_memory(self._observation_rows, self._rows)
        low, high = (np.ravel(getattr(space, end, n)) for n, end in enumerate(("low", "high")))
        self._first_steps = FirstSteps(low, high, self.num_envs)

    def reset(self) -> Tensor:
        """Start all episodes from the seeds; return the first observations (L, N, O)."""
        self._reset_rows(range(len(self._envs)))
        return super().reset()

    def reset_lane(self, lane: int, seed: int, *, is_same_run: bool = False) -> Tensor:
        """See ``Env.reset_lane``."""
        if not is_same_run:
            self._warn_of_endless(lane)
            self._guard.births[lane], self._num_episodes[lane] = self._guard.call.step, 0
            self._infinite_lanes.discard(lane)
        rows = self._rows_of(lane)
        if self.state_mode == "boundary":  # may keep more from before than a reset clears
            for row in rows:
                self._guard.close_env(self._envs[row], row)
                with self._guard("building", row):
                    self._envs[row] = self._make_env()
        self._seeds[rows.start : rows.stop] = env_seeds(torch.tensor([seed]), self.num_envs)
        self._reset_rows(rows)
        return super().reset()

    def begin_episodes(self, keys: Tensor, group_size: int) -> Tensor:
        """See ``Env.begin_episodes``: the environments of a group are reset with the same seed."""
        numbers = bits(self._placement.move(keys, Place.host), -(-self.num_envs // group_size))
        seeds = numbers.bitwise_and_(2**31 - 1).repeat_interleave(group_size, -1)  # (L, ≥ N)
        self._seeds = seeds[:, : self.num_envs].flatten().tolist()
        return self.reset()

    @property
    def state_mode(self) -> Literal["exact", "boundary"]:
        """See ``Env.state_mode``."""
        return "exact" if all(map(is_exact, self._envs)) else "boundary"

    def lane_state(self, lane: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See ``Env.lane_state``."""
        tensors: dict[str, Tensor] = {}
        packed = []
        for number, row in enumerate(self._rows_of(lane)):
            with self._guard("state_dict()", row):
                packed.append(snapshot(self._envs[row], f"{number}", tensors))
        steps = self._guard.call.step - self._guard.births[lane]
        return tensors, {"envs": packed, "steps": steps, "episodes": self._num_episodes[lane]}

    def load_lane_state(
        self, lane: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
    ) -> None:
        """See ``Env.load_lane_state``; the environments have been reset before."""
        self._guard.births[lane] = self._guard.call.step - numbers["steps"]
        self._num_episodes[lane] = numbers["episodes"]
        for row, packed in zip(self._rows_of(lane), numbers["envs"], strict=True):
            with self._guard("load_state_dict()", row):
                restore(self._envs[row], packed, tensors)

    def close(self) -> None:
        """Close every environment; what goes wrong is logged, as nothing is lost by it."""
        for row in range(len(self._envs)):
            self._guard.close_env(self._envs[row], row)
        self._guard.close()
        for lane in range(len(self._num_episodes)):
            self._warn_of_endless(lane)

    def _rows_of(self, lane: int) -> range:
        return range(lane * self.num_envs, (lane + 1) * self.num_envs)

    def _reset_rows(self, rows: range) -> None:
        for row in rows:
            with self._guard("reset()", row):
                returned = self._envs[row].reset(seed=self._seeds[row])
                self._observation_rows[row] = reset_observation(returned, self._shape)

    def _step_rows(self, actions: Tensor) -> bool:
        ended: list[int] = []  # rows whose episode ended
        call, shape, checks_all = self._guard.call, self._shape, not self._first_steps.are_over
        call.step += 1
        with self._guard("step()"):
            for row, action in enumerate(self._env_actions(actions)):
                call.row = row
                returned = self._envs[row].step(action)
                if type(returned) is not tuple or len(returned) != 5:
                    raise WrongReturn(f"{STEP_FORM}, this one returned {described(returned)}")
                observation, reward, terminated, truncated, _ = returned
                is_array = type(observation) is np.ndarray and observation.shape == shape
                if checks_all or not is_array:
                    observation = as_observation(observation, shape)
                if terminated is not False or truncated is not False:
                    terminated = as_flag("terminated", terminated)
                    truncated = as_flag("truncated", truncated)
                if terminated or truncated:
                    if not ended:
                        self._flag_rows[:] = False
                    ended.append(row)
                    self._flag_rows[:, row] = terminated, truncated and not terminated
                    self._last_rows[row] = observation  # before reset, which may reuse the array
                    call.method = "reset()"
                    observation = reset_observation(self._envs[row].reset(), shape)
                    call.method = "step()"
                self._observation_rows[row] = observation
                self._reward_rows[row] = reward if isinstance(reward, float) else as_reward(reward)
        if ended:
            self._end_episodes(ended)
        self._check_numbers(ended)
        return bool(ended)

    def _end_episodes(self, ended: list[int]) -> None:
        continues = np.ones(len(self._envs), dtype=np.bool_)
        continues[ended] = False
        self._last_rows[continues] = self._observation_rows[continues]
        for row in ended:
            self._num_episodes[row // self.num_envs] += 1

    def _check_numbers(self, ended: Sequence[int] = ()) -> None:
        """Log the first numbers of each lane that are not finite; look closer in the first steps.

        The trainer finds them too, and ends the lane alone as diverged.
        """
        is_finite = np.isfinite(self._rows).all()
        if not is_finite or (ended and not np.isfinite(self._last_rows[ended]).all()):
            for row in range(len(self._envs)):
                self._log_infinite(row, has_ended=row in ended)
        if not self._first_steps.are_over:
            self._first_steps.see_observations(self._rows[:, :-1])
        if self._guard.call.step == _MANY_STEPS:
            for lane in range(self.num_lanes):
                self._warn_of_endless(lane)

    def _log_infinite(self, row: int, *, has_ended: bool) -> None:
        what = infinite_component(self._observation_rows[row])
        if what is None and has_ended:
            what = infinite_component(self._last_rows[row])
        if what is None and not math.isfinite(self._reward_rows[row]):
            what = f"the reward {self._reward_rows[row]}"
        lane = row // self.num_envs
        if what is not None and lane not in self._infinite_lanes:
            self._infinite_lanes.add(lane)
            log.error("%s", self._guard.fault(f"returned {what}", row))

    def _warn_of_endless(self, lane: int) -> None:
        """Log how to cut episodes off if none has ended in ``lane``."""
        steps = self._guard.call.step - self._guard.births[lane]
        if self._num_episodes[lane] or steps < _FEW_STEPS:
            return
        limit = self._envs[0].spec.max_episode_steps if self._envs[0].spec else None
        remedy = f"they are cut off after {limit}" if limit else "env.max_episode_steps= cuts them"
        log.warning("no episode has ended in %d steps of each environment; %s", steps, remedy)

    def _env_actions(self, actions: Tensor) -> np.ndarray[Any, Any]:
        """Return host ``actions`` as the environments take them: (n,) from ``start``, or (n, A)."""
        on_host = actions.flatten(0, 1).numpy()
        if isinstance(self.spec.actions, DiscreteActions):
            start = self.spec.actions.start
            return on_host + start if start else on_host
        if not np.isfinite(on_host).all():  # of a diverged lane, beside others that train
            on_host = np.where(np.isfinite(on_host), on_host, 0)
        clipped = np.minimum(np.maximum(on_host, self._low), self._high)  # faster than np.clip
        if not self._first_steps.are_over:
            self._first_steps.see_actions(on_host, clipped, self._low, self._high)
        return clipped
