"""Collects rollouts: steps the environments with the policy and stores the results.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, O = observation size,
R = T * N rows per lane.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.envs.base import Env, Step
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.rollout import DeviceObservations, ObservationStore, Rollout, RolloutRows

__all__ = [
    "MAX_BUFFERED_STEPS",
    "Collector",
    "RolloutColumns",
    "RolloutValues",
    "policy_over_rollout",
]

MAX_BUFFERED_STEPS = 32
"""Most steps that are buffered before they are written; more hardly make a write cheaper."""
_MAX_BLOCK_BYTES = 1 << 20


class RolloutColumns(NamedTuple):
    """What is stored of every step: (T, L, N, …), or (L, N, …) for a single one."""

    observations: Tensor
    last_observations: Tensor
    policy_parameters: Tensor
    actions: Tensor
    rewards: Tensor
    env_rewards: Tensor
    terminated: Tensor
    truncated: Tensor

    @classmethod
    def of(
        cls, observations: Tensor, policy_parameters: Tensor, actions: Tensor, step: Step
    ) -> RolloutColumns:
        """Return the columns of one step, (L, N, …)."""
        return cls(
            observations,
            step.last_observations,
            policy_parameters,
            actions,
            step.rewards,
            step.env_rewards,
            step.terminated,
            step.truncated,
        )


_NUM_OBSERVATIONS = 2  # of the columns, the first ones


class RolloutValues(NamedTuple):
    """Log probabilities and values under the networks that collected the rollout; (T, L, N)."""

    log_probs: Tensor
    values: Tensor
    next_values: Tensor


Act = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Policy parameters and actions of observations (L, N, O) and noise (L, N, …)."""

Steps = Callable[[Tensor], tuple[Tensor, RolloutColumns]]
"""The next observations (L, N, O) and all columns, from the noise (L, T, N, …) of a rollout."""


class Collector:
    """Collects rollouts; each continues from the last observations of the one before."""

    def __init__(
        self,
        env: Env,
        model: ActorCritic,
        *,
        num_steps: int,
        rows_per_pass: int,
        store: ObservationStore,
    ) -> None:
        """Reset ``env``; rollouts have ``num_steps``, forward passes ``rows_per_pass`` rows.

        ``store`` keeps the observations.
        """
        self.env_s = 0.0
        """Seconds the host has spent in ``env.step``; launches only where steps run on CUDA."""
        self.num_dry_steps: int | None = None
        """Steps really taken, for a forecast; the storage still has its full size. None for all."""
        self.compiled_steps: Steps | None = None
        """Takes all steps of a rollout, if compiled."""
        self.compiled_act: Act | None = None
        """Replaces ``act``, if compiled."""
        self.compiled_values: Callable[[RolloutColumns], RolloutValues] | None = None
        """Replaces ``evaluate_rollout``, if compiled."""
        self.keeps_columns = False
        """Whether to keep the columns of the last rollout in ``columns``."""
        self.columns: RolloutColumns | None = None
        self._env, self._model = env, model
        self._num_steps, self._rows_per_pass, self._store = num_steps, rows_per_pass, store
        self._observations = env.reset()  # (L, N, O)

    @torch.inference_mode()  # as the environment's steps are
    def reset_lane(self, lane: int, seed: int) -> None:
        """Restart the episodes of one lane, as if its environments had been built with ``seed``."""
        observations = self._observations.clone()  # an environment's results are read-only
        observations[lane] = self._env.reset_lane(lane, seed)[lane]
        self._observations = observations

    @torch.no_grad()
    def collect(self, noise: Tensor) -> Rollout:
        """Return the next T steps; ``noise`` (L, T * N, …) determines every action."""
        noise = noise.unflatten(1, (self._num_steps, -1))
        if self.compiled_steps is None:
            self._observations, columns = self._step_by_step(noise)
        else:
            self._observations, columns = self.compiled_steps(noise)
        self.columns = columns if self.keeps_columns else None
        log_probs, values, next_values = (self.compiled_values or self.evaluate_rollout)(columns)
        return Rollout(
            observations=columns.observations,
            actions=columns.actions,
            log_probs=log_probs,
            values=values,
            next_values=next_values,
            rewards=columns.rewards,
            env_rewards=columns.env_rewards,
            terminated=columns.terminated,
            truncated=columns.truncated,
        )

    def act(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return policy parameters (L, N, P) and actions sampled with ``noise`` (L, N, …)."""
        policy_parameters = self._model.policy(observations)
        return policy_parameters, self._model.distribution.sample(policy_parameters, noise)

    def evaluate_rollout(self, columns: RolloutColumns) -> RolloutValues:
        """Return log probabilities and values of all rows.

        Acting does not need the critic, so it runs afterwards in few large forward passes.
        """
        log_prob = self._model.distribution.log_prob
        return RolloutValues(
            log_prob(columns.policy_parameters, columns.actions),
            self._values(columns.observations),
            self._values(columns.last_observations),
        )

    @torch.inference_mode()  # cheaper than no_grad for small operations
    def _step_by_step(self, noise: Tensor) -> tuple[Tensor, RolloutColumns]:
        """Take T steps with ``noise`` (L, T, N, …); see ``Steps``."""
        observations = self._observations
        act = self.compiled_act or self.act
        writer: _StepWriter | None = None
        for step_noise in noise.unbind(1)[: self.num_dry_steps]:
            policy_parameters, actions = act(observations, step_noise)
            begin_s = time.perf_counter()
            step = self._env.step(actions)
            self.env_s += time.perf_counter() - begin_s
            row = RolloutColumns.of(observations, policy_parameters, actions, step)
            writer = writer or _StepWriter(self._num_steps, row, self._store)
            writer.append(row)
            observations = step.observations
        assert writer is not None
        return observations, writer.close()

    def _values(self, observations: Tensor) -> Tensor:
        """Return the critic's (T, L, N) for (T, L, N, O)."""
        rows = observations.transpose(0, 1).flatten(1, 2)  # (L, T * N, O)
        values = _in_passes(self._model.values, rows, self._rows_per_pass, self._store)
        return values.unflatten(1, (len(observations), -1)).transpose(0, 1)


class _StepWriter:
    """Writes steps into preallocated columns (L, T, …), a block of steps at a time.

    One write per step would take 8 % of an iteration of CartPole. Large steps are written at once,
    so the buffer holds at most 1 MiB.
    """

    def __init__(self, num_steps: int, row: RolloutColumns, store: ObservationStore) -> None:
        """Allocate columns for ``num_steps`` like ``row``, whose tensors are (L, …)."""
        on_device = DeviceObservations()
        self._stores = [store] * _NUM_OBSERVATIONS + [on_device] * (len(row) - _NUM_OBSERVATIONS)
        with torch.inference_mode(False):  # autograd refuses inference tensors
            self._columns = [s.allocate(num_steps, tensor) for s, tensor in zip(self._stores, row)]
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in row)
        self._block_steps = max(1, min(MAX_BUFFERED_STEPS, _MAX_BLOCK_BYTES // num_bytes))
        self._buffer: list[RolloutColumns] = []
        self._begin = 0  # the first step not written yet

    def append(self, row: RolloutColumns) -> None:
        """Add one step; its tensors must not change afterwards."""
        self._buffer.append(row)
        if len(self._buffer) == self._block_steps:
            self._write()

    def close(self) -> RolloutColumns:
        """Return the columns (T, L, …), complete."""
        if self._buffer:
            self._write()
        self._stores[0].synchronize()
        return RolloutColumns(*(column.transpose(0, 1) for column in self._columns))

    def _write(self) -> None:
        end = self._begin + len(self._buffer)
        for store, column, steps in zip(self._stores, self._columns, zip(*self._buffer)):
            store.write(column[:, self._begin : end], torch.stack(steps, 1))
        self._buffer.clear()
        self._begin = end


def _in_passes(
    function: Callable[[Tensor], Tensor],
    observations: Tensor,
    rows_per_pass: int,
    store: ObservationStore,
) -> Tensor:
    """Return ``function`` of (L, R, O), at most ``rows_per_pass`` rows per lane at a time.

    A forward pass over a whole rollout may need more memory than the update itself.
    """
    num_rows = observations.shape[1]
    parts = [
        function(store.slice(observations, begin, min(begin + rows_per_pass, num_rows)))
        for begin in range(0, num_rows, rows_per_pass)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


@torch.no_grad()
def policy_over_rollout(
    model: ActorCritic, rows: RolloutRows, rows_per_pass: int, store: ObservationStore
) -> tuple[Tensor, Tensor]:
    """Return log ratios and entropies (L, R) of the updated policy over the whole rollout."""
    policy_parameters = _in_passes(model.policy, rows.observations, rows_per_pass, store)
    log_prob, entropy = model.distribution.log_prob_and_entropy(policy_parameters, rows.actions)
    return log_prob - rows.log_probs, entropy
