"""The policy and value networks of all lanes.

Shapes: L = lanes, B = rows per lane, O = observation size, P = distribution parameters per row. A
model that reads sequences is given ``Sequences`` in place of observations; its rows are their
steps, sequence by sequence.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ppo_lab.envs.base import EnvSpec
from ppo_lab.networks.base import NetworkConfig, Trunk
from ppo_lab.networks.distributions import Distribution, distribution_for
from ppo_lab.networks.layers import Initializer, LaneLinear
from ppo_lab.networks.sequences import Memory, Sequences, SequenceTrunk
from ppo_lab.networks.token_head import token_log_prob_and_entropy

__all__ = ["ActorCritic", "Evaluation", "PolicyAndValues"]


class PolicyAndValues(NamedTuple):
    """Outputs of both networks."""

    policy_parameters: Tensor  # (L, B, P)
    values: Tensor  # (L, B)


class Evaluation(NamedTuple):
    """Given actions under the policy, and values; None for what was not asked for."""

    log_probs: Tensor | None  # (L, B)
    entropies: Tensor | None  # (L, B) nats
    values: Tensor | None  # (L, B)


class ActorCritic(nn.Module):
    """Actor and critic: two trunks with one head each, or one shared trunk with both heads.

    Without a critic there is the actor only.
    """

    actor: Trunk
    critic: Trunk | None  # the same module as ``actor`` when the trunk is shared
    policy_head: LaneLinear
    value_head: LaneLinear | None
    log_std: nn.Parameter | None  # (L, 1, A), for continuous actions

    def __init__(
        self,
        network: NetworkConfig,
        spec: EnvSpec,
        initializer: Initializer,
        *,
        shares_trunk: bool,
        has_critic: bool = True,
        compute_dtype: torch.dtype | None = None,
        checkpoints_activations: bool = False,
    ) -> None:
        """Build networks for ``spec``, with weights from ``initializer``, on its device.

        ``compute_dtype`` is autocast's; None computes in the weights' own. If the model
        ``checkpoints_activations``, the backward pass recomputes them.
        """
        super().__init__()
        self.distribution: Distribution = distribution_for(spec.actions)
        self.shares_trunk = shares_trunk
        self.dtype = initializer.dtype
        """Type of trained weights, and of outputs."""
        self._compute_dtype = compute_dtype
        self._reads_tokens = spec.num_tokens is not None
        num_trunks = 2 if has_critic and not shares_trunk else 1
        self.actor, *others = network.build_trunks(spec, initializer, num_trunks)
        self.critic = self.actor if shares_trunk else others[0] if others else None
        for trunk in self.trunks().values():
            trunk.checkpoints_activations = checkpoints_activations
        size = self.distribution.num_parameters // (2 if self.distribution.has_free_std else 1)
        self.policy_head = network.build_policy_head(self.actor, initializer, size)
        self.value_head = None
        if self.critic is not None:
            # Gain 1: values of order one.
            self.value_head = network.linear(initializer, self.critic.num_features, 1, gain=1.0)
        self.log_std = None
        if self.distribution.has_free_std:
            self.log_std = nn.Parameter(torch.zeros_like(self.policy_head.bias))

    @property
    def reads_sequences(self) -> bool:
        """Whether the model's input is ``Sequences``."""
        return isinstance(self.actor, SequenceTrunk)

    @property
    def memory_outlives_rollout(self) -> bool:
        """Whether the model has a memory that goes on from one rollout to the next."""
        return isinstance(self.actor, SequenceTrunk) and self.actor.outlives_rollout

    def policy(self, inputs: Tensor | Sequences) -> Tensor:
        """Return the distribution parameters (L, B, P) for observations (L, B, O) or sequences."""
        with self._autocast(inputs):
            return self._policy_of(_features(self.actor, inputs))

    def values(self, inputs: Tensor | Sequences) -> Tensor:
        """Return the values (L, B) of observations (L, B, O) or sequences."""
        assert self.critic is not None
        with self._autocast(inputs):
            return self._values_of(_features(self.critic, inputs, is_critic=not self.shares_trunk))

    def forward(self, inputs: Tensor | Sequences) -> PolicyAndValues:
        """Return both; a shared trunk runs once."""
        if not self.shares_trunk:
            return PolicyAndValues(self.policy(inputs), self.values(inputs))
        with self._autocast(inputs):
            features = _features(self.actor, inputs)
            return PolicyAndValues(self._policy_of(features), self._values_of(features))

    def evaluate(
        self,
        inputs: Tensor | Sequences,
        actions: Tensor,
        *,
        with_policy: bool = True,
        with_values: bool = True,
    ) -> Evaluation:
        """Return log probabilities of ``actions`` (L, B[, A]), entropies and values."""
        parameters = values = None
        with_values = with_values and self.critic is not None
        if self._reads_tokens and with_policy:
            return self._evaluate_tokens(inputs, actions, with_values=with_values)
        if with_policy and with_values:
            parameters, values = self(inputs)
        elif with_policy:
            parameters = self.policy(inputs)
        else:
            values = self.values(inputs)
        if parameters is None:
            return Evaluation(None, None, values)
        return Evaluation(*self.distribution.log_prob_and_entropy(parameters, actions), values)

    def act(self, inputs: Sequences) -> tuple[Tensor, Memory]:
        """Read one more step of each sequence: parameters (L, B, P), and the actor's memory."""
        with self._autocast(inputs):
            features, memory = cast(SequenceTrunk, self.actor).read(
                inputs.observations, inputs.starts, inputs.actor_memory
            )
            assert memory is not None
            return self._policy_of(features.flatten(1, 2)), memory

    def empty_memories(
        self, num_sequences: int, num_steps: int, *, of_critic: bool = True
    ) -> tuple[Memory, Memory | None]:
        """Return what actor and critic remember before an episode's first step.

        ``num_sequences`` per lane, to which ``num_steps`` will be added. A critic without a trunk
        of its own has none; acting does not need the critic's.
        """
        with self._autocast(self.policy_head.weight):  # a memory has the type it is computed in
            actor = cast(SequenceTrunk, self.actor).empty_memory(num_sequences, num_steps)
            if self.shares_trunk or self.critic is None or not of_critic:
                return actor, None
            critic = cast(SequenceTrunk, self.critic)
            return actor, critic.empty_memory(num_sequences, num_steps)

    def values_and_next(
        self, inputs: Sequences, last_observations: Tensor
    ) -> tuple[Tensor, Tensor, Memory]:
        """Return values (L, B) of sequences, those of what each step led to, and the memory.

        ``last_observations`` (L, B, T, O) are what each step led to, the memory is the critic's.
        """
        trunk = cast(SequenceTrunk, self.critic)
        remembered = inputs.actor_memory if self.shares_trunk else inputs.critic_memory
        given = inputs.observations, inputs.starts, remembered
        with self._autocast(inputs):
            features, memory = trunk.read(*given)
            assert memory is not None
            values = self._values_of(features.flatten(1, 2))
            following = trunk.following(*given, last_observations)
            return values, self._values_of(following.flatten(1, 2)), memory

    def trunks(self) -> dict[str, Trunk]:
        """Return each trunk once, by the group of its parameters."""
        if self.shares_trunk:
            return {"trunk": self.actor}
        return {"actor": self.actor} | ({} if self.critic is None else {"critic": self.critic})

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return each parameter once, by group: ``actor``, ``critic`` and, if shared, ``trunk``."""
        groups = {name: [*trunk.parameters()] for name, trunk in self.trunks().items()}
        groups.setdefault("actor", []).extend(self.policy_head.parameters())
        if self.log_std is not None:
            groups["actor"].append(self.log_std)
        if self.value_head is not None:
            groups.setdefault("critic", []).extend(self.value_head.parameters())
        return groups

    def _autocast(self, inputs: Tensor | Sequences) -> AbstractContextManager[object]:
        if self._compute_dtype is None:
            return nullcontext()
        device = inputs.device if isinstance(inputs, Tensor) else inputs.observations.device
        return torch.autocast(device.type, self._compute_dtype)

    def _policy_of(self, features: Tensor) -> Tensor:
        parameters = self.policy_head(features)
        if self.log_std is None:
            return parameters.to(self.dtype)
        log_std = self.log_std.expand_as(parameters)
        return torch.cat((parameters.to(log_std.dtype), log_std), -1)

    def _values_of(self, features: Tensor) -> Tensor:
        assert self.value_head is not None
        return self.value_head(features).squeeze(-1).to(self.value_head.weight.dtype)

    def _evaluate_tokens(
        self, inputs: Tensor | Sequences, actions: Tensor, *, with_values: bool
    ) -> Evaluation:
        """As ``evaluate``, without logits of all rows at once."""
        values = None
        with self._autocast(inputs):
            features = _features(self.actor, inputs)
            policy = token_log_prob_and_entropy(features, self.policy_head, actions)
            if with_values and self.shares_trunk:
                values = self._values_of(features)
        if with_values and not self.shares_trunk:
            values = self.values(inputs)
        return Evaluation(*policy, values)


def _features(trunk: Trunk, inputs: Tensor | Sequences, *, is_critic: bool = False) -> Tensor:
    """Return the features (L, B, F) of rows, or of each step of sequences."""
    if isinstance(inputs, Tensor):
        return cast(Tensor, trunk(inputs))
    memory = inputs.critic_memory if is_critic else inputs.actor_memory
    read, _ = cast(SequenceTrunk, trunk).read(inputs.observations, inputs.starts, memory)
    return read.flatten(1, 2)
