"""Collects rollouts: steps the environments with the policy and stores the results.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, O = observation size,
R = T * N rows per lane.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppo_lab.devices.placement import copy_exactly
from ppo_lab.envs.base import Env, Step
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.rollout import ObservationStore, Rollout
from ppo_lab.ppo.update import UpdatePlan

__all__ = ["MAX_BUFFERED_STEPS", "Act", "Collector", "RolloutColumns", "StepWriter"]

MAX_BUFFERED_STEPS = 32
"""Most steps that are buffered before they are written; more hardly make a write cheaper."""
_MAX_BLOCK_BYTES = 1 << 20


class RolloutColumns(NamedTuple):
    """What is stored of every step: (T, L, N, …), or (L, N, …) for a single one.

    From ``rewards`` on the fields are those of ``Step``, in its order.
    """

    observations: Tensor
    policy_parameters: Tensor
    actions: Tensor
    rewards: Tensor
    env_rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    last_observations: Tensor


Act = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Policy parameters and actions of observations (L, N, O) and noise (L, N, …)."""

Steps = Callable[[Tensor], tuple[Tensor, RolloutColumns]]
"""The next observations (L, N, O) and all columns, from the noise (L, T, N, …) of a rollout."""


class Collector:
    """Collects rollouts; each continues from the last observations of the one before."""

    def __init__(self, env: Env, model: ActorCritic, num_steps: int, plan: UpdatePlan) -> None:
        """Reset ``env``; rollouts have ``num_steps`` and are stored in the plan's store."""
        self.env, self.model, self.plan = env, model, plan
        self.env_s = 0.0
        """Seconds the host has spent in ``env.step``; launches only where steps run on CUDA."""
        self.num_dry_steps: int | None = None
        """Steps really taken, for a forecast; the storage still has its full size. None for all."""
        self.compiled_steps: Steps | None = None
        """Takes all steps of a rollout, if compiled."""
        self.compiled_act: Act | None = None
        """Replaces ``act``, if compiled."""
        self.compiled_values: Callable[[RolloutColumns], tuple[Tensor, Tensor, Tensor]] | None = (
            None
        )
        """Replaces ``evaluate_rollout``, if compiled."""
        self.keeps_columns = False
        """Whether to keep the columns of the last rollout in ``columns``."""
        self.columns: RolloutColumns | None = None
        self._num_steps = num_steps
        self._observations = env.reset()  # (L, N, O)

    @torch.inference_mode()  # as the environment's steps are
    def reset_lane(self, lane: int, seed: int, *, is_same_run: bool = False) -> None:
        """Restart the episodes of one lane; see ``Env.reset_lane``."""
        self._observe(lane, self.env.reset_lane(lane, seed, is_same_run=is_same_run)[lane])

    def lane_state(self, lane: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state of a lane's environments, with the observations that come next."""
        tensors, numbers = self.env.lane_state(lane)
        return {"observations": self._observations[lane]} | tensors, numbers

    @torch.inference_mode()
    def load_lane_state(
        self, lane: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
    ) -> None:
        """Continue a lane where ``lane_state`` returned this."""
        self._observe(lane, tensors["observations"])
        self.env.load_lane_state(lane, tensors, numbers)

    def _observe(self, lane: int, observations: Tensor) -> None:
        """Set a lane's next observations (N, O)."""
        everyone = self._observations.clone()  # an environment's results are read-only
        copy_exactly(everyone[lane], observations, "observations")
        self._observations = everyone

    @torch.no_grad()
    def collect(self, noise: Tensor, keys: Tensor) -> Rollout:  # noqa: ARG002 - of whole episodes
        """Return the next T steps; ``noise`` (L, T * N, …) determines every action.

        The random ``keys`` (L,) determine how whole episodes begin.
        """
        noise = noise.unflatten(1, (self._num_steps, -1))
        self._observations, columns = (self.compiled_steps or self._step_by_step)(noise)
        self.columns = columns if self.keeps_columns else None
        values = (self.compiled_values or self.evaluate_rollout)(columns)
        return Rollout(columns.observations, columns.actions, *values, *columns[3:7])

    def act(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return policy parameters (L, N, P) and actions sampled with ``noise`` (L, N, …)."""
        policy_parameters = self.model.policy(observations)
        return policy_parameters, self.model.distribution.sample(policy_parameters, noise)

    def evaluate_rollout(
        self, columns: RolloutColumns
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return log probabilities, values and next values of all rows, (T, L, N).

        Without a critic there are no values.
        Acting does not need the critic, so it runs afterwards in few large forward passes.
        """
        log_probs = self.model.distribution.log_prob(columns.policy_parameters, columns.actions)
        if self.model.critic is None:
            return log_probs, None, None
        return (
            log_probs,
            self._values(columns.observations),
            self._values(columns.last_observations),
        )

    @torch.inference_mode()  # cheaper than no_grad for small operations
    def _step_by_step(self, noise: Tensor) -> tuple[Tensor, RolloutColumns]:
        """Take T steps with ``noise`` (L, T, N, …); see ``Steps``."""
        observations = self._observations
        act = self.compiled_act or self.act
        writer: StepWriter | None = None
        for step_noise in noise.unbind(1)[: self.num_dry_steps]:
            policy_parameters, actions = act(observations, step_noise)
            step = self.step_env(actions)
            row = RolloutColumns(observations, policy_parameters, actions, *step[1:])
            writer = writer or StepWriter(self._num_steps, row, self.plan.store)
            writer.append(row)
            observations = step.observations
        assert writer is not None
        return observations, writer.close()

    def step_env(self, actions: Tensor) -> Step:
        """Step the environments, and count the time."""
        begin_s = time.perf_counter()
        step = self.env.step(actions)
        self.env_s += time.perf_counter() - begin_s
        return step

    def _values(self, observations: Tensor) -> Tensor:
        """Return the critic's (T, L, N) for (T, L, N, O)."""
        rows = observations.transpose(0, 1).flatten(1, 2)  # (L, T * N, O)
        (values,) = self.plan.in_passes(lambda inputs, _: [self.model.values(inputs)], rows)
        return values.unflatten(1, (len(observations), -1)).transpose(0, 1)


class StepWriter:
    """Writes steps into preallocated columns (L, T, …), a block of at most 1 MiB at a time.

    One write per step would take 8 % of an iteration of CartPole.
    """

    def __init__(
        self,
        num_steps: int,
        row: RolloutColumns,
        store: ObservationStore,
        *,
        is_padded: bool = False,
    ) -> None:
        """Allocate columns for ``num_steps`` like ``row``, whose tensors are (L, …).

        ``is_padded``: fewer steps may be appended; the others will be 0.
        """
        self._is_padded = is_padded
        on_device, observations = ObservationStore(), ("observations", "last_observations")
        self._stores = [store if name in observations else on_device for name in row._fields]
        with torch.inference_mode(False):  # autograd refuses inference tensors
            self._columns = [s.allocate(num_steps, tensor) for s, tensor in zip(self._stores, row)]
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in row)
        self._block_steps = max(1, min(MAX_BUFFERED_STEPS, _MAX_BLOCK_BYTES // num_bytes))
        self._buffer: list[RolloutColumns] = []
        self._begin = 0  # the first step not written yet

    @property
    def fills_up(self) -> bool:
        """Whether the next step is the last that fits into the buffer."""
        return len(self._buffer) == self._block_steps - 1

    def append(self, row: RolloutColumns) -> None:
        """Add one step; its tensors must not change afterwards."""
        self._buffer.append(row)
        if len(self._buffer) == self._block_steps:
            self._write()

    def close(self) -> RolloutColumns:
        """Return the columns (T, L, …), complete; steps that were not appended are 0."""
        if self._buffer:
            self._write()
        for column in self._columns if self._is_padded else ():
            column[:, self._begin :].zero_()
        self._stores[0].synchronize()
        return RolloutColumns(*(column.transpose(0, 1) for column in self._columns))

    def _write(self) -> None:
        end = self._begin + len(self._buffer)
        for store, column, steps in zip(self._stores, self._columns, zip(*self._buffer)):
            store.write(column[:, self._begin : end], torch.stack(steps, 1))
        self._buffer.clear()
        self._begin = end
