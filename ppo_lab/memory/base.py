"""What a memory strategy decides: which layers are shared, where the optimizer's state lives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from ppo_lab.envs.base import EnvSpec
from ppo_lab.errors import ConfigError
from ppo_lab.networks import ActorCritic, Initializer, NetworkConfig
from ppo_lab.optimizer import LaneOptimizer
from ppo_lab.placement import Place, Placement

__all__ = ["MemoryStrategy"]


@dataclass(kw_only=True)
class MemoryStrategy(ABC):
    """A strategy: its options are fields, its behaviour is methods.

    It holds no state; the optimizer it builds does, so checkpoints and schedules do not care which
    strategy ran.
    """

    name: ClassVar[str]
    """What ``memory=`` says."""
    shares_trunk: ClassVar[bool] = False
    """Whether actor and critic are two heads of one trunk. That is another model, with other
    returns, not only a smaller one."""
    optimizer_place: ClassVar[Place] = Place.device
    """Where Adam's moments live."""
    max_lanes: ClassVar[int | None] = None
    """Most lanes in a stack; None for any number."""

    num_micro_batches: int = 1
    """Parts of a minibatch whose gradients are added up before a step: the same gradient (to
    rounding) with that fraction of the activations, and more, smaller operations. Must divide the
    minibatch's rows."""
    checkpoint_activations: bool = False
    """Keep only some layers' outputs for the backward pass and compute the others again: about a
    third more arithmetic. Worth it where activations are most of the memory (wide, deep networks
    on large minibatches); nothing for networks of two layers."""
    rollout_place: Place = Place.device
    """Where the observations of a rollout wait for the update. host keeps only the rows in use on
    the device and sends every row over the bus once per epoch and pass."""

    def check(self, minibatch_rows: int) -> None:
        """Raise ``ConfigError`` unless the options fit minibatches of ``minibatch_rows``."""
        if self.num_micro_batches < 1 or minibatch_rows % self.num_micro_batches:
            raise ConfigError(
                "memory.num_micro_batches",
                self.num_micro_batches,
                f"must divide the minibatch's {minibatch_rows} rows",
            )

    def build_model(
        self,
        network: NetworkConfig,
        spec: EnvSpec,
        initializer: Initializer,
        compute_dtype: torch.dtype | None,
    ) -> ActorCritic:
        """Return a new model on the initializer's device."""
        return ActorCritic(
            network,
            spec,
            initializer,
            shares_trunk=self.shares_trunk,
            compute_dtype=compute_dtype,
        )

    @abstractmethod
    def build_optimizer(
        self, model: ActorCritic, placement: Placement, *, eps: float
    ) -> LaneOptimizer:
        """Return the optimizer that steps ``model``; ``eps`` is Adam's."""
