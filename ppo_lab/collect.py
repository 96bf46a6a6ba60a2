"""The first of PPO's two phases: step the environments and keep what happened.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, O = observation size,
R = T * N rows per lane.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppo_lab.envs.base import Env, Step
from ppo_lab.networks import ActorCritic
from ppo_lab.observations import DeviceObservations, ObservationStore
from ppo_lab.rollout import Rollout, RolloutRows

__all__ = ["MAX_BLOCK_STEPS", "Collector", "policy_over_rollout"]

MAX_BLOCK_STEPS = 32
"""Most steps that wait outside the storage; more would hardly make a write cheaper."""
_MAX_BLOCK_BYTES = 1 << 20


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
        self._env, self._model = env, model
        self._num_steps, self._rows_per_pass, self._store = num_steps, rows_per_pass, store
        self._observations = env.reset()  # (L, N, O)

    def restart_lane(self, lane: int, seed: int) -> None:
        """Begin the episodes of one lane anew, as if its environments had been built with ``seed``.

        The other lanes go on from what they saw last.
        """
        observations = self._observations.clone()  # what an environment has returned is read-only
        observations[lane] = self._env.restart_lane(lane, seed)[lane]
        self._observations = observations

    @torch.no_grad()
    def collect(self, noise: Tensor) -> Rollout:
        """Return the next T steps; ``noise`` (L, T * N, …) decides every action."""
        env, distribution = self._env, self._model.distribution
        observations = self._observations
        noises = noise.unflatten(1, (self._num_steps, -1)).unbind(1)
        writer: _StepWriter | None = None
        for step_noise in noises[: self.num_dry_steps]:
            policy_parameters = self._model.policy(observations)
            action = distribution.sample(policy_parameters, step_noise)
            begin_s = time.perf_counter()
            step = env.step(action)
            self.env_s += time.perf_counter() - begin_s
            seen = (observations, step.last_observations)
            rest = (policy_parameters, action, *_kept(step))
            writer = writer or _StepWriter(self._num_steps, seen, rest, self._store)
            writer.append((*seen, *rest))
            observations = step.observations
        self._observations = observations
        assert writer is not None
        return self._rollout(*writer.close())

    def _rollout(
        self,
        observations: Tensor,
        last_observations: Tensor,
        policy_parameters: Tensor,
        actions: Tensor,
        rewards: Tensor,
        env_rewards: Tensor,
        terminated: Tensor,
        truncated: Tensor,
    ) -> Rollout:
        """Return the columns as a rollout, with log probabilities and values of all rows at once.

        The critic is not needed to act, so it runs over the rollout afterwards, in far fewer and
        larger operations.
        """
        return Rollout(
            observations=observations,
            actions=actions,
            log_probs=self._model.distribution.log_prob(policy_parameters, actions),
            values=self._values(observations),
            next_values=self._values(last_observations),
            rewards=rewards,
            env_rewards=env_rewards,
            terminated=terminated,
            truncated=truncated,
        )

    def _values(self, observations: Tensor) -> Tensor:
        """Return the critic's (T, L, N) for (T, L, N, O)."""
        rows = observations.transpose(0, 1).flatten(1, 2)  # (L, T * N, O)
        values = _in_passes(self._model.values, rows, self._rows_per_pass, self._store)
        return values.unflatten(1, (len(observations), -1)).transpose(0, 1)


def _kept(step: Step) -> tuple[Tensor, ...]:
    return (step.rewards, step.env_rewards, step.terminated, step.truncated)


class _StepWriter:
    """Writes steps into columns (L, T, …) that were allocated whole, a block of steps at a time.

    One write per step would cost 8 % of an iteration of CartPole. Steps too large for that to
    matter are written at once, so no more than 1 MiB of them lies beside the columns.
    """

    def __init__(
        self,
        num_steps: int,
        observations: Sequence[Tensor],
        rest: Sequence[Tensor],
        store: ObservationStore,
    ) -> None:
        """Allocate ``num_steps`` of what the tensors (L, …) show one step of."""
        on_device = DeviceObservations()
        self._stores = [store] * len(observations) + [on_device] * len(rest)
        row = (*observations, *rest)
        self._columns = [s.allocate(num_steps, tensor) for s, tensor in zip(self._stores, row)]
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in row)
        self._block_steps = max(1, min(MAX_BLOCK_STEPS, _MAX_BLOCK_BYTES // num_bytes))
        self._waiting: list[Sequence[Tensor]] = []
        self._begin = 0  # the first step that is not written yet

    def append(self, row: Sequence[Tensor]) -> None:
        """Take one more step; its tensors must not change any more."""
        self._waiting.append(row)
        if len(self._waiting) == self._block_steps:
            self._write()

    def close(self) -> list[Tensor]:
        """Return the columns (T, L, …), complete."""
        if self._waiting:
            self._write()
        self._stores[0].settle()
        return [column.transpose(0, 1) for column in self._columns]

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
