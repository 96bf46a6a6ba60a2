"""Collects whole sequences: for policies that read them, and for rollouts of whole episodes.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, O = observation size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppo_lab.devices.placement import copy_exactly
from ppo_lab.envs.base import Env
from ppo_lab.networks import ActorCritic
from ppo_lab.networks.sequences import Memory, Sequences
from ppo_lab.ppo.collector import Collector, RolloutColumns, StepWriter
from ppo_lab.ppo.rollout import Rollout, SequenceContext, by_env
from ppo_lab.ppo.update import UpdatePlan

__all__ = ["SequenceCollector"]

_STEPS_PER_LOOK = 16
"""Steps on CUDA after which it is asked whether all episodes are over."""


class SequenceCollector(Collector):
    """Collects rollouts whose rows stay together, environment by environment.

    If the policy reads sequences it acts with a memory, which begins anew with each episode. In
    rollouts of whole episodes every environment plays one; steps after its end are not live.
    """

    def __init__(
        self,
        env: Env,
        model: ActorCritic,
        num_steps: int,
        plan: UpdatePlan,
        group_size: int | None = None,
    ) -> None:
        """As ``Collector``; with a ``group_size``, rollouts consist of whole episodes.

        So many environments each begin alike.
        """
        super().__init__(env, model, num_steps, plan)
        self._group_size = group_size
        self._actor_memory = self._critic_memory = None
        self._starts = torch.ones(env.num_lanes, env.num_envs, dtype=torch.bool, device=env.device)
        # Whether all episodes are over is on the device: looking there waits for it.
        self._steps_per_look = _STEPS_PER_LOOK if env.device.type == "cuda" else 1
        # Where episodes are whole, each rollout begins with empty memories.
        self._keeps_memory = model.memory_outlives_rollout and group_size is None
        if self._keeps_memory:
            self._actor_memory, self._critic_memory = model.empty_memories(env.num_envs, num_steps)

    def reset_lane(self, lane: int, seed: int, *, is_same_run: bool = False) -> None:
        """Restart the episodes of one lane, with empty memories."""
        super().reset_lane(lane, seed, is_same_run=is_same_run)
        self._starts[lane] = True

    def lane_state(self, lane: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state of a lane's environments and memories."""
        tensors, numbers = super().lane_state(lane)
        own = {name: tensor[lane].clone() for name, tensor in self._own_tensors().items()}
        return tensors | own, numbers

    @torch.inference_mode()
    def load_lane_state(
        self, lane: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
    ) -> None:
        """Continue a lane where ``lane_state`` returned this."""
        super().load_lane_state(lane, tensors, numbers)
        for name, tensor in self._own_tensors().items():
            copy_exactly(tensor[lane], tensors[name], name)

    def _own_tensors(self) -> dict[str, Tensor]:
        tensors = {"starts": self._starts}
        for name, memory in (("actor", self._actor_memory), ("critic", self._critic_memory)):
            tensors |= {f"{name}_memory.{i}": part for i, part in enumerate(memory or ())}
        return tensors

    @torch.no_grad()
    def collect(self, noise: Tensor, keys: Tensor) -> Rollout:
        """See ``Collector.collect``.

        Values of whole texts are missing; ``evaluate`` adds them.
        """
        noise = noise.unflatten(1, (self._num_steps, -1))
        if self._group_size is not None:
            self._observations = self.env.begin_episodes(keys, self._group_size)
            self._starts = torch.ones_like(self._starts)
        first_starts, memory = self._starts, self._actor_memory
        self._observations, columns, given = self._take_steps(noise)
        ended = columns.terminated | columns.truncated
        starts = torch.cat((first_starts.unsqueeze(0), ended[:-1]))  # (T, L, N)
        self._starts = ended[-1]
        live = None
        if self._group_size is not None:
            columns, live = self._first_episodes(columns, ended, given)
        context = None
        if self.model.reads_sequences:
            flat = None if self._group_size is not None else by_env(starts)
            context = SequenceContext(self._num_steps, flat, memory, self._critic_memory)
        policy = columns.policy_parameters
        log_probs = policy.squeeze(-1) if context else self._log_probs(columns)
        given_columns = columns.observations, columns.actions, log_probs
        values = self._evaluate(columns, context)
        return Rollout(*given_columns, *values, *columns[3:7], live=live, sequences=context)

    @torch.inference_mode()
    def _take_steps(self, noise: Tensor) -> tuple[Tensor, RolloutColumns, Tensor | None]:
        """Take up to T steps, until all episodes have ended if they are whole.

        Returns the next observations, the columns, and the steps whose actions were given
        (T, L, N). For a policy that reads sequences the column of policy parameters holds log
        probabilities (T, L, N, 1): logits of many tokens would fill the memory.
        """
        observations, starts, memory = self._observations, self._starts, self._actor_memory
        is_whole = self._group_size is not None
        if self.model.reads_sequences and memory is None:
            memory, _ = self.model.empty_memories(
                self.env.num_envs, self._num_steps, of_critic=False
            )
        is_over = torch.zeros_like(starts)
        row: RolloutColumns | None = None
        writer: StepWriter | None = None
        given_steps: list[Tensor] = []
        steps = noise.unbind(1)[: self.num_dry_steps]
        is_dry = self.num_dry_steps is not None
        for number, step_noise in enumerate(steps, 1):
            if row and is_dry and writer and not writer.fills_up and number < len(steps):
                # A forecast needs the policy only when most is buffered beside it.
                policy, sampled = (torch.empty_like(part) for part in row[1:3])
            else:
                policy, sampled, memory = self._sample(observations, starts, memory, step_noise)
            actions, given = self.env.given_actions(sampled)
            if given is not None:
                given_steps.append(given)
            step = self.step_env(actions)
            row = RolloutColumns(observations, policy, actions, *step[1:])
            writer = writer or StepWriter(self._num_steps, row, self.plan.store, is_padded=is_whole)
            writer.append(row)
            observations, starts = step.observations, step.terminated | step.truncated
            if is_whole:
                is_over |= starts
                if number % self._steps_per_look == 0 and not is_dry and bool(is_over.all()):
                    break
        assert writer is not None
        if self._keeps_memory:
            self._actor_memory = memory
        given = None
        if given_steps:
            missing = self._num_steps - len(given_steps)
            given = torch.stack(given_steps + [torch.zeros_like(given_steps[0])] * missing)
        return observations, writer.close(), given

    def _sample(
        self, observations: Tensor, starts: Tensor, memory: Memory | None, noise: Tensor
    ) -> tuple[Tensor, Tensor, Memory | None]:
        """Return what is stored of the policy (L, N, …), actions, and the memory after them."""
        if not self.model.reads_sequences:
            return *self.act(observations, noise), memory
        of_step = None if self._group_size is not None else starts.unsqueeze(-1)
        inputs = Sequences(observations.unsqueeze(2), of_step, memory)
        parameters, memory = self.model.act(inputs)
        actions = self.model.distribution.sample(parameters, noise)
        log_probs = self.model.distribution.log_prob(parameters, actions)
        return log_probs.unsqueeze(-1), actions, memory

    def _first_episodes(
        self, columns: RolloutColumns, ended: Tensor, given: Tensor | None
    ) -> tuple[RolloutColumns, Tensor]:
        """Return the columns without what came after each episode's end, and the live steps."""
        is_first = ended.cumsum(0) - ended.long() == 0  # (T, L, N) no end before this step
        live = is_first if given is None else is_first & ~given
        rewards, env_rewards = (
            rewards.masked_fill(~is_first, 0.0)
            for rewards in (columns.rewards, columns.env_rewards)
        )
        final = self.env.final_rewards()
        if final is not None:
            last = (is_first.sum(0, keepdim=True) - 1).clamp(min=0)  # (1, L, N)
            rewards = rewards.scatter_add(0, last, final.unsqueeze(0).to(rewards.dtype))
            env_rewards = env_rewards.scatter_add(0, last, final.unsqueeze(0).to(rewards.dtype))
        columns = columns._replace(
            rewards=rewards,
            env_rewards=env_rewards,
            terminated=columns.terminated & is_first,
            truncated=columns.truncated & is_first,
        )
        return columns, live

    def _log_probs(self, columns: RolloutColumns) -> Tensor:
        return self.model.distribution.log_prob(columns.policy_parameters, columns.actions)

    def _evaluate(
        self, columns: RolloutColumns, context: SequenceContext | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return values and next values (T, L, N); None if ``evaluate`` adds them or none are."""
        if self.model.critic is None or (context and not self.model.memory_outlives_rollout):
            return None, None
        if context is None:
            return self._values(columns.observations), self._values(columns.last_observations)
        inputs = context.inputs(by_env(columns.observations))
        after = by_env(columns.last_observations).unflatten(1, (-1, self._num_steps))
        values, next_values, memory = self.model.values_and_next(inputs, after)
        if not self.model.shares_trunk:
            self._critic_memory = memory
        return self._by_step(values), self._by_step(next_values)

    @property
    def has_evaluation(self) -> bool:
        """Whether a rollout consists of texts, which are evaluated after they are written."""
        return self.model.reads_sequences and not self.model.memory_outlives_rollout

    @torch.no_grad()
    def evaluate(self, rollout: Rollout) -> Rollout:
        """Add the critic's values to a rollout of whole texts, in few large forward passes."""
        if self.model.critic is None or rollout.values is not None:
            return rollout
        rows, context = by_env(rollout.observations), rollout.sequences  # (L, N * T, O)
        (values,) = self.plan.in_passes(lambda x, _: [self.model.values(x)], rows, context)
        values = self._by_step(values)
        # Every episode ends with a terminal step, so the last next value is unused.
        after = torch.cat((values[1:], torch.zeros_like(values[:1])))
        return rollout._replace(values=values, next_values=after)

    def _by_step(self, rows: Tensor) -> Tensor:
        """Return (T, L, N) of (L, N * T)."""
        return rows.unflatten(1, (-1, self._num_steps)).permute(2, 0, 1)
