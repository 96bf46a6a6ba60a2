"""Environments whose dynamics are tensor operations on the training device.

A new one defines its constants, ``transition`` (and ``observe``, if the observation is not the
state) and is added to ``ppo_lab.envs.NATIVE_ENVS``.

Shapes: L = lanes, N = environments per lane, S = state size, O = observation size, K = steps whose
initial states are drawn at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ppo_lab.devices.placement import copy_exactly
from ppo_lab.envs.base import Env, EnvSpec, Step
from ppo_lab.utils.rng import Stream, lane_keys, uniform

__all__ = ["NativeEnv"]

# Hashing takes about 25 operations; shared by 128 steps that is little beside a step's own 25.
_MAX_BLOCK_STEPS = 128
_MAX_BLOCK_NUMBERS = 1 << 18  # hashed at once: 2 MiB as int64, which fits into a CPU's cache


class NativeEnv(Env):
    """Base of native environments: initial states, time limits, and reset in the same step.

    Initial states are uniform in a box, a pure function of (lane seed, steps of the lane,
    environment, component). New ones are drawn every ``shortest_episode`` steps, as often as an
    episode can end: drawn every step they cost 1.4 of 2.0 ms (CPU, N = 16384).
    """

    spec: EnvSpec
    time_limit: ClassVar[int]  # steps; Gymnasium's registered max_episode_steps
    shortest_episode: ClassVar[int]  # a lower bound in steps; 1 is always correct
    start_low: ClassVar[tuple[float, ...]]  # (S,)
    start_high: ClassVar[tuple[float, ...]]  # (S,)
    only_native: ClassVar[bool] = False  # Gymnasium has no environment of this id

    def __init__(
        self,
        *,
        seeds: Tensor,
        num_envs: int,
        dtype: torch.dtype = torch.float32,
        max_episode_steps: int | None = None,
    ) -> None:
        """Build L * N environments on the device of ``seeds`` (L,) int64; call ``reset`` next."""
        self.num_lanes, self.num_envs, self.device = seeds.shape[0], num_envs, seeds.device
        self.dtype = dtype
        self._limit = self.time_limit if max_episode_steps is None else max_episode_steps
        self._keys = lane_keys(seeds, Stream.ENV)  # (L,)
        self._low = self._constant(self.start_low)  # (S,)
        self._span = self._constant(self.start_high) - self._low  # (S,)
        self._lanes = torch.arange(self.num_lanes, device=self.device)
        self._window = min(self.shortest_episode, self._limit)  # steps that share initial states
        numbers = self.num_lanes * num_envs * len(self.start_low)  # in one window
        block_steps = self._window * (_MAX_BLOCK_NUMBERS // numbers)
        self.max_block_steps = max(1, min(_MAX_BLOCK_STEPS, block_steps))  # K
        self._steps = torch.arange(self.max_block_steps, device=self.device).unsqueeze(-1)  # (K, 1)
        self._births = torch.zeros_like(self._lanes)  # (L,) the clock at which a lane was reset
        # (L, N) the clock at which an episode is cut off
        self._deadlines = self._births.unsqueeze(-1).repeat(1, num_envs)
        self._clock = 0  # environment steps since reset; lane l has made clock - births[l]
        self._place_constants()

    def _place_constants(self) -> None:
        """Create the constants of ``transition`` on the device, so that no step copies them."""

    @abstractmethod
    def transition(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new state (L, N, S), rewards (L, N) and terminated (L, N); pure."""

    def observe(self, state: Tensor) -> Tensor:
        """Return the observations (..., O) of ``state`` (..., S); pure."""
        return state

    def reset(self) -> Tensor:
        """Start all episodes from the seeds; return the first observations (L, N, O)."""
        self._clock = 0
        self._births.zero_()
        self._deadlines = torch.full_like(self._deadlines, self._limit)
        self._draw_starts(0)
        self._state = self._starts[0]
        return self._first_observations[0]

    def step(self, actions: Tensor) -> Step:
        """Advance by one step; actions are int64 (L, N) or float (L, N, A)."""
        self._clock += 1
        if self._clock == self._block_end:
            self._draw_starts(self._clock)
        index = self._clock - self._block_begin
        start = self._starts[index], self._first_observations[index]
        self._state, self._deadlines, step = self.advance(
            self._state, self._deadlines, self._clock, start, actions
        )
        return step

    def advance(
        self,
        state: Tensor,  # (L, N, S)
        deadlines: Tensor,  # (L, N) clock at which the episode is truncated
        clock: int | Tensor,  # steps since reset, including this one
        start: tuple[Tensor, Tensor],  # state and observation of an episode that starts now
        actions: Tensor,  # int64 (L, N) or float (L, N, A)
    ) -> tuple[Tensor, Tensor, Step]:
        """Return the state and deadlines after one step, and the step; pure."""
        first_state, first_observations = start
        new_state, rewards, terminated = self.transition(state, actions)
        last_observations = self.observe(new_state)
        at_limit = deadlines <= clock
        ended = terminated | at_limit
        choose_start = ended.unsqueeze(-1)
        next_state = torch.where(choose_start, first_state, new_state)
        observations = next_state
        if last_observations is not new_state:  # else they are the state: one `where` less
            observations = torch.where(choose_start, first_observations, last_observations)
        deadlines = deadlines.masked_fill(ended, clock + self._limit)
        truncated = at_limit > terminated  # at the limit, but not terminated
        step = Step(observations, rewards, rewards, terminated, truncated, last_observations)
        return next_state, deadlines, step

    def begin_block(self, num_steps: int) -> list[Tensor]:
        """Return the inputs of the next ``num_steps`` calls of ``advance``, except the actions.

        State (L, N, S), deadlines (L, N), the clock before them (), initial states
        (num_steps, L, N, S) and first observations (num_steps, L, N, O) of each step.
        """
        if self._clock + num_steps >= self._block_end:
            self._draw_starts(self._clock + 1)
        begin = self._clock + 1 - self._block_begin
        clock = torch.full((), self._clock, dtype=torch.int64, device=self.device)
        starts = (block[begin : begin + num_steps] for block in self._blocks)
        return [self._state, self._deadlines, clock, *starts]

    def end_block(self, num_steps: int, state: Tensor, deadlines: Tensor) -> None:
        """Store the state (L, N, S) and deadlines (L, N) after ``num_steps`` steps."""
        self._clock += num_steps
        self._state, self._deadlines = state, deadlines

    def reset_lane(self, lane: int, seed: int, *, is_same_run: bool = False) -> Tensor:  # noqa: ARG002
        """See ``Env.reset_lane``."""
        seeds = torch.full((1,), seed, dtype=torch.int64, device=self.device)
        self._keys[lane] = lane_keys(seeds, Stream.ENV)[0]
        self._births[lane] = self._clock
        self._deadlines[lane] = self._clock + self._limit
        self._draw_starts(self._clock)
        self._state = self._state.clone()  # returned tensors are never written
        self._state[lane] = self._starts[0][lane]
        return self.observe(self._state)

    def begin_episodes(self, keys: Tensor, group_size: int) -> Tensor:
        """See ``Env.begin_episodes``."""
        self._keys.copy_(keys)
        self._births.fill_(self._clock)
        self._deadlines = torch.full_like(self._deadlines, self._clock + self._limit)
        self._draw_starts(self._clock)
        firsts = torch.arange(self.num_envs, device=self.device) // group_size * group_size
        self._state = self._starts[0][:, firsts]
        return self.observe(self._state)

    @property
    def state_mode(self) -> Literal["exact"]:
        """See ``Env.state_mode``."""
        return "exact"

    def lane_state(self, lane: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See ``Env.lane_state``; deadlines count from now, as another stack's clock differs."""
        tensors = {
            "state": self._state[lane].clone(),  # (N, S)
            "deadlines": self._deadlines[lane] - self._clock,  # (N,)
            "key": self._keys[lane].clone(),
        }
        return tensors, {"steps": self._clock - int(self._births[lane])}

    def load_lane_state(
        self, lane: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
    ) -> None:
        """See ``Env.load_lane_state``."""
        self._state = self._state.clone()  # returned tensors are never written
        copy_exactly(self._state[lane], tensors["state"], "state")
        copy_exactly(self._deadlines[lane], tensors["deadlines"] + self._clock, "deadlines")
        copy_exactly(self._keys[lane], tensors["key"], "key")
        self._births[lane] = self._clock - numbers["steps"]
        self._draw_starts(self._clock)

    def _draw_starts(self, clock: int) -> None:
        """Draw initial states and first observations of K steps, the first one at ``clock``.

        They are drawn whether or not an episode ends: checking would synchronise with the device.
        """
        num_steps, state_size = self.max_block_steps, len(self.start_low)
        num_windows = (num_steps - 1) // self._window + 2  # the block may begin within a window
        per_window = self.num_envs * state_size
        lane_steps = clock - self._births  # (L,)
        first_windows = lane_steps // self._window  # (L,)
        count, first = num_windows * per_window, first_windows * per_window
        numbers = uniform(self._keys, count, first, self.dtype)
        numbers = numbers.view(self.num_lanes, num_windows, self.num_envs, state_size)
        windows = (lane_steps + self._steps) // self._window - first_windows  # (K, L)
        starts = torch.addcmul(self._low, numbers, self._span)[self._lanes, windows]  # (K, L, N, S)
        self._blocks = (starts, self.observe(starts))
        # K views at once cost less than indexing in each step.
        self._starts, self._first_observations = (block.unbind(0) for block in self._blocks)
        self._block_begin, self._block_end = clock, clock + num_steps

    def _constant(self, value: float | tuple[float, ...]) -> Tensor:
        """Return a constant on the device, which operations use faster than a Python number."""
        return torch.tensor(value, dtype=self.dtype, device=self.device)
