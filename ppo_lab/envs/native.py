"""Environments whose dynamics are tensor operations: all L * N advance in one program, anywhere.

A new one states its constants, writes ``transition`` (and ``observe``, if the state is not what the
policy sees) and adds one line to ``ppo_lab.envs.NATIVE_ENVS``. Time limits, autoreset and the
starts of episodes are here.

Shapes: L = lanes, N = environments per lane, S = state size, O = observation size, K = steps whose
starts are drawn at once.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ppo_lab.envs.base import Env, EnvSpec, Step
from ppo_lab.utils.rng import Stream, lane_keys, uniform

__all__ = ["NativeEnv"]

_MAX_BLOCK_STEPS = 128
"""Hashing costs about 25 operations; over 128 steps that is nothing beside a step's own 25."""

_MAX_BLOCK_NUMBERS = 1 << 18
"""About so many numbers are hashed at once: 2 MiB as int64, which stays in a CPU's cache."""


class NativeEnv(Env):
    """What all native environments share: starts, time limits and the reset in the same step.

    A start is uniform in a box and a pure function of (lane seed, steps the lane has made,
    environment, component): no generator is kept, no environment waits for another. New numbers
    are drawn every ``shortest_episode`` steps, which is as often as an episode can end: hashing is
    most of the work when N is large (CPU, N = 16384: 1.4 of 2.0 ms a step if drawn every step).
    """

    spec: EnvSpec
    time_limit: ClassVar[int]  # steps; Gymnasium's registered max_episode_steps
    shortest_episode: ClassVar[int]  # steps no episode ends before; 1 is always right
    start_low: ClassVar[tuple[float, ...]]  # (S,)
    start_high: ClassVar[tuple[float, ...]]  # (S,)

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
        self._window = min(self.shortest_episode, self._limit)  # steps that share their starts
        numbers = self.num_lanes * num_envs * len(self.start_low)  # in one window
        block_steps = self._window * (_MAX_BLOCK_NUMBERS // numbers)
        self._steps = torch.arange(  # (K, 1)
            max(1, min(_MAX_BLOCK_STEPS, block_steps)), device=self.device
        ).unsqueeze(-1)
        self._births = torch.zeros(self.num_lanes, dtype=torch.int64, device=self.device)  # (L,)
        self._deadlines = torch.zeros(  # (L, N) the clock at which an episode is cut off
            self.num_lanes, num_envs, dtype=torch.int64, device=self.device
        )
        self._clock = 0  # environment steps since reset; lane l has made clock - births[l]
        self._place_constants()

    def _place_constants(self) -> None:
        """Put on the device what ``transition`` needs beside its arguments, if anything."""

    @abstractmethod
    def transition(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new state (L, N, S), rewards (L, N) and terminated (L, N) of one step.

        Pure: it depends on its arguments and on constants, and writes nothing.
        """

    def observe(self, state: Tensor) -> Tensor:
        """Return what the policy sees (..., O) of ``state`` (..., S); pure."""
        return state

    def reset(self) -> Tensor:
        """Begin anew, from the seeds alone, and return the first observations (L, N, O)."""
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
        self._state, self._deadlines, step = self.advance(
            self._state,
            self._deadlines,
            self._clock,
            (self._starts[index], self._first_observations[index]),
            actions,
        )
        return step

    def advance(
        self,
        state: Tensor,
        deadlines: Tensor,
        clock: int | Tensor,
        start: tuple[Tensor, Tensor],
        actions: Tensor,
    ) -> tuple[Tensor, Tensor, Step]:
        """Return state (L, N, S) and deadlines (L, N) after one step, and what it returned; pure.

        ``clock`` is that after the step; ``start`` the state (L, N, S) and the first observation
        (L, N, O) of an episode that begins now.
        """
        first_state, first_observations = start
        new_state, rewards, terminated = self.transition(state, actions)
        last_observations = self.observe(new_state)
        at_limit = deadlines <= clock
        ended = terminated | at_limit
        choose_start = ended.unsqueeze(-1)
        next_state = torch.where(choose_start, first_state, new_state)
        observations = next_state
        if last_observations is not new_state:  # else the state is what is seen: one choice less
            observations = torch.where(choose_start, first_observations, last_observations)
        deadlines = deadlines.masked_fill(ended, clock + self._limit)
        truncated = at_limit > terminated  # at the limit, and not terminated as well
        step = Step(observations, rewards, rewards, terminated, truncated, last_observations)
        return next_state, deadlines, step

    @property
    def max_block_steps(self) -> int:
        """Steps whose starts are drawn at once, and which can be made in one block."""
        return self._steps.shape[0]

    def begin_block(self, num_steps: int) -> list[Tensor]:
        """Return what the next ``num_steps`` calls of ``advance`` take beside the actions.

        State (L, N, S), deadlines (L, N), the clock before them (), and for each of them start
        states (num_steps, L, N, S) and first observations (num_steps, L, N, O).
        """
        if self._clock + num_steps >= self._block_end:
            self._draw_starts(self._clock + 1)
        begin = self._clock + 1 - self._block_begin
        clock = torch.full((), self._clock, dtype=torch.int64, device=self.device)
        starts = (block[begin : begin + num_steps] for block in self._blocks)
        return [self._state, self._deadlines, clock, *starts]

    def end_block(self, num_steps: int, state: Tensor, deadlines: Tensor) -> None:
        """Take over what came of them."""
        self._clock += num_steps
        self._state, self._deadlines = state, deadlines

    def reset_lane(self, lane: int, seed: int) -> Tensor:
        """Begin one lane anew as if it had been built with ``seed``; return all observations."""
        seeds = torch.full((1,), seed, dtype=torch.int64, device=self.device)
        self._keys[lane] = lane_keys(seeds, Stream.ENV)[0]
        self._births[lane] = self._clock
        self._deadlines[lane] = self._clock + self._limit
        self._draw_starts(self._clock)
        self._state = self._state.clone()  # what was returned is never written into
        self._state[lane] = self._starts[0][lane]
        return self.observe(self._state)

    def _draw_starts(self, clock: int) -> None:
        """Draw the start states and first observations of K steps, the first one at ``clock``.

        They are drawn whether or not an episode ends: to ask would mean to wait for the device.
        """
        num_steps, state_size = self._steps.shape[0], len(self.start_low)
        num_windows = (num_steps - 1) // self._window + 2  # the block may begin within a window
        per_window = self.num_envs * state_size
        lane_steps = clock - self._births  # (L,)
        first_windows = lane_steps // self._window  # (L,)
        numbers = uniform(
            self._keys, num_windows * per_window, first_windows * per_window, self.dtype
        )
        numbers = numbers.view(self.num_lanes, num_windows, self.num_envs, state_size)
        windows = (lane_steps + self._steps) // self._window - first_windows  # (K, L)
        starts = torch.addcmul(self._low, numbers, self._span)[self._lanes, windows]  # (K, L, N, S)
        self._blocks = (starts, self.observe(starts))
        # K views now cost less than one indexing a step.
        self._starts, self._first_observations = (block.unbind(0) for block in self._blocks)
        self._block_begin, self._block_end = clock, clock + num_steps

    def _constant(self, value: float | tuple[float, ...]) -> Tensor:
        """Return a constant on the device: cheaper in an operation than a Python number."""
        return torch.tensor(value, dtype=self.dtype, device=self.device)
