"""What a memory strategy decides: which layers are shared, and where each kind of tensor lives."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch.nn import Parameter

from ppo_lab.devices.placement import Place, Placement, Traffic
from ppo_lab.envs.base import EnvSpec
from ppo_lab.networks import ActorCritic, Initializer, NetworkConfig
from ppo_lab.ppo.adam import LaneOptimizer
from ppo_lab.ppo.rollout import DeviceObservations, HostObservations, ObservationStore
from ppo_lab.utils.errors import ConfigError

__all__ = ["MemoryStrategy", "Workload", "clip_groups"]

_LOG = logging.getLogger(__name__)


class Workload(NamedTuple):
    """What the bytes that cross the bus depend on; counts are of all lanes together."""

    num_parameters: int
    num_rows: int  # of one rollout
    observation_size: int
    num_epochs: int
    num_minibatches: int
    num_clip_groups: int  # 2 where actor and critic are clipped separately, else 1
    element_size: int  # bytes of a weight, and of an observation's number

    @property
    def num_gradient_steps(self) -> int:
        """Gradient steps of one update."""
        return self.num_epochs * self.num_minibatches


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
    num_passes: ClassVar[int] = 1
    """How often an update goes over its minibatches: once for both networks, or once for each."""
    always_clips_separately: ClassVar[bool] = False
    """Whether actor and critic are clipped by their own norms without being asked to."""

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
        """Return a new model on the initializer's device; warn of an option without effect."""
        model = ActorCritic(
            network,
            spec,
            initializer,
            shares_trunk=self.shares_trunk,
            compute_dtype=compute_dtype,
            checkpoints_activations=self.checkpoint_activations,
        )
        if self.checkpoint_activations and not model.actor.can_checkpoint:
            _LOG.warning(
                "memory.checkpoint_activations=true has no effect on a network of %d layers",
                model.actor.num_stages,
            )
        return model

    def build_store(self, placement: Placement) -> ObservationStore:
        """Return what keeps a rollout's observations."""
        if self.rollout_place is Place.host:
            return HostObservations(placement)
        return DeviceObservations()

    @abstractmethod
    def build_optimizer(
        self, model: ActorCritic, placement: Placement, *, eps: float, separate_grad_clip: bool
    ) -> LaneOptimizer:
        """Return the optimizer that steps ``model``; ``eps`` is Adam's."""

    def traffic(self, workload: Workload) -> Traffic:
        """Return the bytes of one iteration, less those of the environment and of the record."""
        optimizer = self._optimizer_traffic(workload)
        if self.rollout_place is Place.device:
            return optimizer
        # Observations and last observations go down as they are collected; both come up for their
        # values, the former again after the update, and every epoch's rows in its own order.
        observations = workload.num_rows * workload.observation_size * workload.element_size
        num_rounds = self.num_passes * workload.num_epochs
        return Traffic(
            h2d_bytes=optimizer.h2d_bytes + (3 + num_rounds) * observations,
            d2h_bytes=optimizer.d2h_bytes + 2 * observations + num_rounds * 8 * workload.num_rows,
        )

    def step_traffic(self, workload: Workload) -> Traffic:  # noqa: ARG002 - here nothing moves
        """Return the bytes that the optimizer moves in each gradient step."""
        return Traffic()

    def _optimizer_traffic(self, workload: Workload) -> Traffic:
        """Return the bytes that the optimizer moves in an iteration."""
        step = self.step_traffic(workload)
        num_steps = workload.num_gradient_steps
        return Traffic(num_steps * step.h2d_bytes, num_steps * step.d2h_bytes)


def clip_groups(model: ActorCritic, *, separate: bool) -> list[list[Parameter]]:
    """Return the parameters that share a norm: all, or the actor's and the critic's."""
    return list(model.groups().values()) if separate else [list(model.parameters())]
