"""The interface of a memory strategy: what is shared, and where each class of tensor is stored."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.envs.base import EnvSpec
from ppo_lab.memory.host_activations import HostActivations
from ppo_lab.networks import ActorCritic, Initializer, NetworkConfig
from ppo_lab.ppo.adam import LaneAdam, LaneOptimizer
from ppo_lab.ppo.backward_adam import BackwardAdam
from ppo_lab.ppo.rollout import HostObservations, ObservationStore
from ppo_lab.utils.errors import ConfigError

__all__ = ["AutoMemory", "MemoryStrategy", "ParameterCost", "clip_groups"]

_LOG = logging.getLogger(__name__)


class ParameterCost(NamedTuple):
    """Memory and bus traffic of one trained parameter, in numbers of the weights' type.

    Adam needs four: the weight, its gradient and two moments. A number takes 4 B in float32, also
    under bfloat16 autocast, which keeps weights in float32, and 8 B in float64. What does not grow
    with the parameters is left out: step counts, clip coefficients, rounding to blocks.
    """

    device: float
    """Stored on the device throughout an update."""
    device_in_training: float = 0
    """Stored on the device only while the parameter's own network is trained."""
    host: float = 0
    """Stored in host memory."""
    bus_per_step: float = 0
    """Copied over the bus in each gradient step, both directions together."""
    bus_per_iteration: float = 0
    """Copied over the bus in each iteration, whatever the number of gradient steps."""

    def describe(self, element_size: int) -> str:
        """Return every cost that is not 0, in bytes and words; a weight has ``element_size`` bytes.

        Example:
            >>> ParameterCost(device=2, host=4, bus_per_step=2).describe(4)
            '8 B on the device, 16 B on the host, 8 B over PCIe per gradient step'
        """
        places = (
            "on the device",
            "more on the device while its network is trained",
            "on the host",
            "over PCIe per gradient step",
            "over PCIe per iteration",
        )
        parts = zip(self, places)
        return ", ".join(f"{count * element_size:.4g} B {place}" for count, place in parts if count)


@dataclass(kw_only=True)
class MemoryStrategy(ABC):
    """Base class of the strategies: options are fields, behaviour is methods.

    A strategy is stateless. The state is in the optimizer that it builds, so checkpoints and
    schedules do not depend on the strategy.
    """

    name: ClassVar[str]
    """The value of ``memory=`` on the command line."""
    shares_trunk: ClassVar[bool] = False
    """Whether actor and critic are two heads of one trunk: another model, with other returns, not
    only a smaller one."""
    has_critic: ClassVar[bool] = True
    """Whether there is a critic at all."""
    optimizer_place: ClassVar[Place] = Place.device
    """Where Adam's moments are stored between updates."""
    max_lanes: ClassVar[int | None] = None
    """Most lanes in a stack; None for any number."""
    always_clips_separately: ClassVar[bool] = False
    """Whether actor and critic are clipped by their own norms even if ``separate_grad_clip`` is
    false."""

    offload_fraction: float = 0.0
    """Share of the parameters whose Adam moments and step are in host memory, 0 to 1: at most that
    many, in whole tensors, the largest first. In float32 an offloaded parameter takes 8 B on the
    device in place of 16, and 8 B over PCIe in each gradient step. 1 is the default of
    memory=offloaded_optimizer; memory=parked has none."""
    optimizer_in_backward: bool = False
    """Step each part of the parameters within the backward pass and free its gradient: 4 B per
    parameter less in float32, but for the largest part (a tensor, or several of 4 M elements
    together). The same numbers to the bit. Where gradients are clipped it takes a second backward
    pass, and activations stay until that. Not with micro-batches or an offloaded share."""
    num_micro_batches: int = 1
    """Parts of a minibatch whose gradients are added up before a step: the same gradient (to
    rounding) with that fraction of the activations, and more, smaller operations. Must divide the
    minibatch's rows."""
    checkpoint_activations: bool = False
    """Keep only some layers' outputs for the backward pass and recompute the others: about a third
    more arithmetic. Useful where activations are most of the memory (wide, deep networks on large
    minibatches); no effect on networks of two layers."""
    offload_activations: bool = False
    """Keep what a forward pass saves for its backward pass in host memory: on the device are the
    activations in use. The same numbers to the bit; every activation crosses PCIe twice in each
    gradient step. Useful where activations are most of the memory, and on top of
    ``checkpoint_activations``."""
    rollout_place: Place = Place.device
    """Where a rollout's observations are stored until the update. host keeps only the rows in use
    on the device and copies every row over the bus once per epoch and pass."""
    reference_place: Place = Place.device
    """Where the frozen reference of texts is stored between uses. host copies its weights to the
    device once per iteration; memory=parked does so unless it is told otherwise."""

    def check(self, minibatch_size: int, unit: str = "rows") -> None:
        """Raise ``ConfigError`` unless the options suit minibatches of so many rows or others."""
        if self.num_micro_batches < 1 or minibatch_size % self.num_micro_batches:
            allowed = f"must divide the minibatch's {minibatch_size} {unit}"
            raise ConfigError("memory.num_micro_batches", self.num_micro_batches, allowed)
        if not 0.0 <= self.offload_fraction <= 1.0:
            raise ConfigError("memory.offload_fraction", self.offload_fraction, "must be 0 to 1")
        key = "memory.optimizer_in_backward"
        if self.optimizer_in_backward and self.offload_fraction:
            allowed = f"needs Adam on the device; memory={self.name} keeps"
            allowed += f" {self.offload_fraction:.0%} of it on the host"
            raise ConfigError(key, True, allowed)
        if self.optimizer_in_backward and self.num_micro_batches > 1:
            allowed = "needs memory.num_micro_batches=1: the sum of gradients would have to be kept"
            raise ConfigError(key, True, allowed)

    def build_model(
        self,
        network: NetworkConfig,
        spec: EnvSpec,
        initializer: Initializer,
        compute_dtype: torch.dtype | None,
    ) -> ActorCritic:
        """Return a new model on the initializer's device; warn of an option without effect.

        ``compute_dtype`` is autocast's type; None computes in the weights' own.
        """
        model = ActorCritic(
            network,
            spec,
            initializer,
            shares_trunk=self.shares_trunk,
            has_critic=self.has_critic,
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
        """Return the storage of a rollout's observations, as ``rollout_place`` says."""
        if self.rollout_place is Place.host:
            return HostObservations(placement)
        return ObservationStore()

    def build_saving(
        self, model: ActorCritic, placement: Placement
    ) -> Callable[[object], AbstractContextManager[None]]:
        """Return the context of forward passes of ``model``, as ``offload_activations`` says."""
        if self.offload_activations:
            return HostActivations(model, placement)
        return lambda _: nullcontext()

    @property
    def cost(self) -> ParameterCost:
        """Memory and bus traffic of each parameter: weight, gradient, two moments."""
        share = self.offload_fraction  # of which gradient and weight are copied each step
        device = 3 if self.optimizer_in_backward else 4 - 2 * share
        return ParameterCost(device=device, host=4 * share, bus_per_step=2 * share)

    @property
    def lane_limit(self) -> tuple[str, str, int] | None:
        """The setting that limits a stack, its value, and the most lanes; None for any number."""
        if self.max_lanes is not None:
            return "memory", self.name, self.max_lanes
        if self.offload_fraction > 0.0:
            return "memory.offload_fraction", f"{self.offload_fraction:g}", 1
        return None

    @property
    def compile_obstacle(self) -> str | None:
        """The option that prevents compilation; None if there is none."""
        obstacles = {
            f"memory={self.name}": self.max_lanes is not None,
            "memory.rollout_place=host": self.rollout_place is not Place.device,
            "memory.num_micro_batches": self.num_micro_batches > 1,
            "memory.checkpoint_activations=true": self.checkpoint_activations,
            "memory.offload_activations=true": self.offload_activations,
            "memory.optimizer_in_backward=true": self.optimizer_in_backward,
            f"memory.offload_fraction={self.offload_fraction:g}": self.offload_fraction > 0.0,
        }
        return next((name for name, applies in obstacles.items() if applies), None)

    @property
    def num_trunks(self) -> int:
        """Trunks of a model: 1 if it is shared or there is no critic, else 2."""
        return 1 if self.shares_trunk or not self.has_critic else 2

    @abstractmethod
    def build_optimizer(
        self,
        model: ActorCritic,
        placement: Placement,
        *,
        eps: float,
        clips: bool,
        separate_grad_clip: bool,
    ) -> LaneOptimizer:
        """Return the optimizer of ``model``, whose parameters (L, ...) are on the device.

        ``placement`` makes all copies; ``eps`` is added to the root of Adam's second moment;
        ``clips`` is whether gradients are clipped at all.
        """

    def build_adam(
        self,
        *groups: Iterable[Parameter],
        eps: float,
        clips: bool,
        zeros: Callable[[Tensor], Tensor] = torch.zeros_like,
    ) -> LaneAdam:
        """Return Adam on the device, as ``optimizer_in_backward`` says; see ``LaneAdam``."""
        if self.optimizer_in_backward:
            return BackwardAdam(*groups, eps=eps, clips=clips, zeros=zeros)
        return LaneAdam(*groups, eps=eps, zeros=zeros)


@dataclass(kw_only=True)
class AutoMemory(MemoryStrategy):
    """Placeholder of ``memory=auto``; ``forecast.budget.resolve_memory`` replaces it."""

    name: ClassVar[str] = "auto"

    def check(self, minibatch_size: int, unit: str = "rows") -> None:
        """See ``MemoryStrategy.check``; what to offload is chosen."""
        super().check(minibatch_size, unit)
        if self.offload_fraction:
            allowed = "must be 0 with memory=auto, which chooses a strategy itself"
            raise ConfigError("memory.offload_fraction", self.offload_fraction, allowed)

    def build_optimizer(self, *_: object, **__: object) -> LaneOptimizer:
        """Never called: every run has a strategy."""
        raise AssertionError("memory=auto was not resolved")


def clip_groups(model: ActorCritic, *, separate: bool) -> list[list[Parameter]]:
    """Return the groups of parameters that share a gradient norm: all, or actor and critic."""
    return list(model.groups().values()) if separate else [list(model.parameters())]
