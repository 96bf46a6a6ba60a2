"""Actor and critic trained one after the other; Adam's moments of the idle network on the host.

An update takes all gradient steps of the actor, then all of the critic over the same minibatches.
The moments of the network in training are copied to the device before and back after: 16 B per
parameter and iteration in float32 (8 B each way), whatever the number of gradient steps. The
gradients of the two networks never exist together, so each network is clipped by its own norm: the
arithmetic of ``separate_grad_clip=true``, always.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.memory.base import MemoryStrategy, ParameterCost
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.adam import LaneAdam, LaneOptimizer, TrainTarget
from ppo_lab.utils.errors import ConfigError

__all__ = ["Parked", "ParkedAdam"]

_LOG = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Parked(MemoryStrategy):
    """Weights of both networks on the device, gradients and Adam's moments of one at a time."""

    name: ClassVar[str] = "parked"
    optimizer_place: ClassVar[Place] = Place.host
    max_lanes: ClassVar[int | None] = 1
    always_clips_separately: ClassVar[bool] = True

    reference_place: Place = Place.host
    """Where the frozen reference of texts is stored between uses; its weights are copied to the
    device once per iteration."""
    pin_memory: bool = True
    """Page-locked host memory where there is CUDA: copies run at the bus's full speed. false where
    locked memory is scarce."""

    def check(self, minibatch_size: int, unit: str = "rows") -> None:
        """See ``MemoryStrategy.check``; all moments are on the host already, between passes."""
        super().check(minibatch_size, unit)
        if self.offload_fraction:
            allowed = "must be 0 with memory=parked, which moves the moments of whole networks"
            raise ConfigError("memory.offload_fraction", self.offload_fraction, allowed)

    @property
    def cost(self) -> ParameterCost:
        """See ``MemoryStrategy.cost``."""
        return ParameterCost(
            device=1,  # weight
            device_in_training=2 if self.optimizer_in_backward else 3,  # moments, gradient
            host=2,  # two moments
            bus_per_iteration=4,  # two moments to the device and back
        )

    def build_optimizer(
        self,
        model: ActorCritic,
        placement: Placement,
        *,
        eps: float,
        clips: bool,
        separate_grad_clip: bool,
    ) -> LaneOptimizer:
        """Return Adam for two passes; each network is clipped by its own norm."""
        assert separate_grad_clip
        _LOG.info("memory=parked: actor and critic are each clipped by their own gradient's norm")

        def zeros(like: Tensor) -> Tensor:
            return placement.empty_host_like(like, pin=self.pin_memory).zero_()

        actor, critic = (
            self.build_adam(group, eps=eps, clips=clips, zeros=zeros)
            for group in model.groups().values()
        )
        return ParkedAdam(actor, critic, placement)


class ParkedAdam(LaneOptimizer):
    """Adam on the device for one network at a time; the other's moments are on the host."""

    num_clip_groups = 2

    def __init__(self, actor: LaneAdam, critic: LaneAdam, placement: Placement) -> None:
        """Take both networks' optimizers, whose moments are on the host."""
        self._placement = placement
        self._adams = {TrainTarget.policy: actor, TrainTarget.values: critic}
        self.parameters = [p for adam in self._adams.values() for p in adam.parameters]
        self._training = TrainTarget.policy

    def passes(self) -> Iterator[TrainTarget]:
        """Yield the actor's pass, then the critic's, each with its moments on the device."""
        for training, adam in self._adams.items():
            self._training = training
            parked = adam.moments
            adam.moments = [
                self._placement.move(moment, Place.device, non_blocking=True) for moment in parked
            ]
            yield training
            self._write_back(adam, parked)

    def _write_back(self, adam: LaneAdam, parked: list[Tensor]) -> None:
        # In a method of its own: the suspended generator would keep its loop's last moment alive.
        for moment, place in zip(adam.moments, parked):
            self._placement.move(moment, Place.host, out=place, non_blocking=True)
        adam.moments = parked

    def backward(self, loss: Tensor) -> None:
        """See ``LaneOptimizer.backward``, of the network in training."""
        self._adams[self._training].backward(loss)

    @torch.no_grad()
    def step(self, *, lr: Tensor, max_grad_norm: Tensor, active: Tensor | None = None) -> Tensor:
        """See ``LaneOptimizer.step``; only the network in training is stepped."""
        adam = self._adams[self._training]
        (norm,) = adam.step(lr=lr, max_grad_norm=max_grad_norm, active=active)
        norms = norm.new_zeros(2, len(norm))
        norms[list(self._adams).index(self._training)] = norm
        return norms

    def state_parts(self) -> Iterator[tuple[Tensor, Parameter | None]]:
        """See ``LaneOptimizer.state_parts``."""
        for adam in self._adams.values():
            yield from adam.state_parts()
