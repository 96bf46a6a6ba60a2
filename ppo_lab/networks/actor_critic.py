"""The policy and value networks of all lanes.

Shapes: L = lanes, B = rows per lane, O = observation size, P = distribution parameters per row.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ppo_lab.envs.base import EnvSpec
from ppo_lab.networks.base import NetworkConfig, Trunk
from ppo_lab.networks.distributions import Distribution, distribution_for
from ppo_lab.networks.layers import Initializer, LaneLinear

__all__ = ["ActorCritic", "PolicyAndValues"]


class PolicyAndValues(NamedTuple):
    """Outputs of both networks."""

    policy_parameters: Tensor  # (L, B, P)
    values: Tensor  # (L, B)


class ActorCritic(nn.Module):
    """Actor and critic: two trunks with one head each, or one shared trunk with both heads."""

    actor: Trunk
    critic: Trunk  # the same module as ``actor`` when the trunk is shared
    policy_head: LaneLinear
    value_head: LaneLinear
    log_std: nn.Parameter | None  # (L, 1, A), for continuous actions

    def __init__(
        self,
        network: NetworkConfig,
        spec: EnvSpec,
        initializer: Initializer,
        *,
        shares_trunk: bool,
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
        self._compute_dtype = compute_dtype
        self.actor = network.build_trunk(spec, initializer)
        self.critic = self.actor
        if not shares_trunk:
            self.critic = network.build_trunk(spec, initializer)
        for trunk in (self.actor, self.critic):
            trunk.checkpoints_activations = checkpoints_activations
        size = self.distribution.num_parameters // (2 if self.distribution.has_free_std else 1)
        # Gains: an almost uniform initial policy, and values of order one.
        self.policy_head = network.linear(initializer, self.actor.num_features, size, gain=0.01)
        self.value_head = network.linear(initializer, self.critic.num_features, 1, gain=1.0)
        self.log_std = None
        if self.distribution.has_free_std:
            self.log_std = nn.Parameter(torch.zeros_like(self.policy_head.bias))

    def policy(self, observations: Tensor) -> Tensor:
        """Return the distribution parameters (L, B, P) for ``observations`` (L, B, O)."""
        with self._autocast(observations):
            return self._policy_of(self.actor(observations))

    def values(self, observations: Tensor) -> Tensor:
        """Return the values (L, B) of ``observations`` (L, B, O)."""
        with self._autocast(observations):
            return self._values_of(self.critic(observations))

    def forward(self, observations: Tensor) -> PolicyAndValues:
        """Return both for ``observations`` (L, B, O); a shared trunk runs once."""
        if not self.shares_trunk:
            return PolicyAndValues(self.policy(observations), self.values(observations))
        with self._autocast(observations):
            features = self.actor(observations)
            return PolicyAndValues(self._policy_of(features), self._values_of(features))

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return each parameter once, by group: ``actor``, ``critic`` and, if shared, ``trunk``."""
        trunk = [*self.actor.parameters()]
        actor, critic = [*self.policy_head.parameters()], [*self.value_head.parameters()]
        if self.log_std is not None:
            actor.append(self.log_std)
        if self.shares_trunk:
            return {"trunk": trunk, "actor": actor, "critic": critic}
        return {"actor": trunk + actor, "critic": [*self.critic.parameters(), *critic]}

    def _autocast(self, observations: Tensor) -> AbstractContextManager[object]:
        if self._compute_dtype is None:
            return nullcontext()
        return torch.autocast(observations.device.type, self._compute_dtype)

    def _policy_of(self, features: Tensor) -> Tensor:
        parameters = self.policy_head(features)
        if self.log_std is None:
            return parameters.to(self.policy_head.weight.dtype)
        log_std = self.log_std.expand_as(parameters)
        return torch.cat((parameters.to(log_std.dtype), log_std), -1)

    def _values_of(self, features: Tensor) -> Tensor:
        return self.value_head(features).squeeze(-1).to(self.value_head.weight.dtype)
