"""The first of PPO's two phases: step the environments and keep what happened.

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
"""Most steps that wait outside the storage; more would hardly make a write cheaper."""
_MAX_BLOCK_BYTES = 1 << 20


class RolloutColumns(NamedTuple):
    """What is kept of every step: (T, L, N, …), or (L, N, …) for one of them."""

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
        """Return one step: what was seen, what was done, and what came of it."""
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
    """What a rollout is worth to the networks that collected it, each (T, L, N)."""

    log_probs: Tensor
    values: Tensor
    next_values: Tensor


Act = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Policy parameters and actions of observations (L, N, O) and noise (L, N, …)."""

Steps = Callable[[Tensor], tuple[Tensor, RolloutColumns]]
"""The next observations (L, N, O) and all columns, from the noise (L, T, N, …) of a rollout."""


class Collector:
    """Keeps what one rollout hands to the next: the current observations."""

    def __init__(
        self,
        env: Env,
        model: ActorCritic,
        *,
        num_steps: int,
        rows_per_pass: int,
        store: ObservationStore,
        num_dry_steps: int | None = None,
    ) -> None:
        """Reset ``env``; rollouts have ``num_steps``, forward passes ``rows_per_pass`` rows.

        ``store`` keeps the observations. A forecast takes only the first ``num_dry_steps`` and
        leaves the rest of the storage, which has its full size all the same, as it was allocated.
        """
        self.env_s = 0.0
        """Seconds the host has spent in ``env.step``; launches only where steps run on CUDA."""
        self.num_dry_steps = num_dry_steps
        """Steps really taken; None for all."""
        self.compiled_steps: Steps | None = None
        """Takes all steps at once where that is compiled."""
        self.compiled_act: Act | None = None
        """Takes the place of ``act`` where it is compiled."""
        self.compiled_values: Callable[[RolloutColumns], RolloutValues] | None = None
        """Takes the place of ``evaluate_rollout`` where it is compiled."""
        self.keeps_columns = False
        """Whether to keep the columns of the last rollout in ``columns``."""
        self.columns: RolloutColumns | None = None
        self._env, self._model = env, model
        self._num_steps, self._rows_per_pass, self._store = num_steps, rows_per_pass, store
        self._observations = env.reset()  # (L, N, O)

    @torch.inference_mode()  # as the environment's steps are
    def reset_lane(self, lane: int, seed: int) -> None:
        """Begin the episodes of one lane anew, as if its environments had been built with ``seed``.

        The other lanes go on from what they saw last.
        """
        observations = self._observations.clone()  # what an environment has returned is read-only
        observations[lane] = self._env.reset_lane(lane, seed)[lane]
        self._observations = observations

    @torch.no_grad()
    def collect(self, noise: Tensor) -> Rollout:
        """Return the next T steps; ``noise`` (L, T * N, …) decides every action."""
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
        """Return policy parameters (L, N, P) and the actions that ``noise`` (L, N, …) decides."""
        policy_parameters = self._model.policy(observations)
        return policy_parameters, self._model.distribution.sample(policy_parameters, noise)

    def evaluate_rollout(self, columns: RolloutColumns) -> RolloutValues:
        """Return log probabilities and values of all rows at once.

        The critic is not needed to act, so it runs over the rollout afterwards, in far fewer and
        larger operations.
        """
        log_prob = self._model.distribution.log_prob
        return RolloutValues(
            log_prob(columns.policy_parameters, columns.actions),
            self._values(columns.observations),
            self._values(columns.last_observations),
        )

    @torch.inference_mode()  # small operations cost less than without gradients alone
    def _step_by_step(self, noise: Tensor) -> tuple[Tensor, RolloutColumns]:
        """Take T steps, decided by ``noise`` (L, T, N, …); return what ``Steps`` does."""
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
    """Writes steps into columns (L, T, …) that were allocated whole, a block of steps at a time.

    One write per step would cost 8 % of an iteration of CartPole. Steps too large for that to
    matter are written at once, so no more than 1 MiB of them lies beside the columns.
    """

    def __init__(self, num_steps: int, row: RolloutColumns, store: ObservationStore) -> None:
        """Allocate ``num_steps`` of what ``row``, of tensors (L, …), shows one step of."""
        on_device = DeviceObservations()
        self._stores = [store] * _NUM_OBSERVATIONS + [on_device] * (len(row) - _NUM_OBSERVATIONS)
        with torch.inference_mode(False):  # what is kept may be differentiated through
            self._columns = [s.allocate(num_steps, tensor) for s, tensor in zip(self._stores, row)]
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in row)
        self._block_steps = max(1, min(MAX_BUFFERED_STEPS, _MAX_BLOCK_BYTES // num_bytes))
        self._waiting: list[RolloutColumns] = []
        self._begin = 0  # the first step that is not written yet

    def append(self, row: RolloutColumns) -> None:
        """Take one more step; its tensors must not change any more."""
        self._waiting.append(row)
        if len(self._waiting) == self._block_steps:
            self._write()

    def close(self) -> RolloutColumns:
        """Return the columns (T, L, …), complete."""
        if self._waiting:
            self._write()
        self._stores[0].synchronize()
        return RolloutColumns(*(column.transpose(0, 1) for column in self._columns))

    def _write(self) -> None:
        end = self._begin + len(self._waiting)
        for store, column, steps in zip(self._stores, self._columns, zip(*self._waiting)):
            store.write(column[:, self._begin : end], torch.stack(steps, 1))
        self._waiting.clear()
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
