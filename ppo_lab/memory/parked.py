"""Actor and critic trained one after the other; Adam's state of the idle one waits in host memory.

In an update the actor takes all of its gradient steps, then the critic takes all of its own over
the same minibatches. The state of the network in training is fetched before and written back after:
16 B per parameter and iteration in float32 (8 up, 8 down), whatever the number of gradient steps.
Gradients of both networks never exist together, so each is clipped by its own norm: the arithmetic
of ``separate_grad_clip=true``, always.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from ppo_lab.devices.placement import Place, Placement, Traffic
from ppo_lab.memory.base import MemoryStrategy, Workload
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.adam import LaneAdam, LaneOptimizer, TrainTarget

__all__ = ["Parked", "ParkedAdam"]

_LOG = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Parked(MemoryStrategy):
    """Weights of both networks on the device, gradients and Adam's state of one at a time."""

    name: ClassVar[str] = "parked"
    optimizer_place: ClassVar[Place] = Place.host
    max_lanes: ClassVar[int | None] = 1
    num_passes: ClassVar[int] = 2
    always_clips_separately: ClassVar[bool] = True

    pin_memory: bool = True
    """Page-locked host memory where there is CUDA: copies run at the bus's full speed. false where
    locked memory is scarce."""

    def build_optimizer(
        self, model: ActorCritic, placement: Placement, *, eps: float, separate_grad_clip: bool
    ) -> LaneOptimizer:
        """Return Adam for two passes; it clips separately in any case."""
        assert separate_grad_clip
        _LOG.info("memory=parked: actor and critic are each clipped by their own gradient's norm")
        return ParkedAdam(model.groups(), placement, eps=eps, pin_memory=self.pin_memory)

    def _optimizer_traffic(self, workload: Workload) -> Traffic:
        """Return two moments of every parameter up, and down again."""
        num_bytes = 2 * workload.num_parameters * workload.element_size
        return Traffic(h2d_bytes=num_bytes, d2h_bytes=num_bytes)


class ParkedAdam(LaneOptimizer):
    """Adam on the device for one network at a time."""

    num_clip_groups = 2

    def __init__(
        self,
        groups: dict[str, list[Parameter]],
        placement: Placement,
        *,
        eps: float,
        pin_memory: bool,
    ) -> None:
        """Take the parameters of ``actor`` and ``critic``; their moments begin on the host."""
        self._placement = placement

        def zeros(like: Tensor) -> Tensor:
            return placement.empty_host_like(like, pin=pin_memory).zero_()

        self._adams = {
            TrainTarget.policy: LaneAdam(groups["actor"], eps=eps, zeros=zeros),
            TrainTarget.values: LaneAdam(groups["critic"], eps=eps, zeros=zeros),
        }
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
        # A method of its own: a loop's last moment would live on in the suspended generator.
        for moment, place in zip(adam.moments, parked):
            self._placement.move(moment, Place.host, out=place, non_blocking=True)
        adam.moments = parked

    @torch.no_grad()
    def step(self, *, lr: Tensor, max_grad_norm: Tensor, active: Tensor | None = None) -> Tensor:
        """See ``LaneOptimizer.step``; the network in training takes it."""
        (norm,) = self._adams[self._training].step(
            lr=lr, max_grad_norm=max_grad_norm, active=active
        )
        norms = norm.new_zeros(2, len(norm))
        norms[list(self._adams).index(self._training)] = norm
        return norms

    def state_dict(self) -> dict[str, Tensor]:
        """Return the host's moments and the step counts, by network; waits for copies under way."""
        if self._placement.is_cuda:
            torch.cuda.current_stream(self._placement.device).synchronize()
        return {
            f"{training.value}.{name}": value
            for training, adam in self._adams.items()
            for name, value in adam.state_dict().items()
        }

    def state_parts(self) -> Iterator[tuple[Tensor, Parameter | None]]:
        """See ``LaneOptimizer.state_parts``."""
        for adam in self._adams.values():
            yield from adam.state_parts()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy ``state`` in place."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
