"""Adam on the host: the device keeps weights and gradients, the moments never cross the bus.

Each gradient step sends the gradients down (4 B per parameter in float32) and the new weights up
(4 B). What torchao's CPUOffloadOptimizer leaves out, gradient clipping, is exact here: the norm is
taken over all gradients on the device, and the host's fused AdamW divides by the inverse of the
clip coefficient as it reads them (its ``grad_scale``), so no extra pass over the gradients is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from ppo_lab.memory.base import MemoryStrategy
from ppo_lab.networks import ActorCritic
from ppo_lab.optimizer import BETAS, LaneOptimizer, clip_coefficient
from ppo_lab.placement import Place, Placement

__all__ = ["HostAdam", "OffloadedOptimizer"]


@dataclass(kw_only=True)
class OffloadedOptimizer(MemoryStrategy):
    """Two networks on the device, Adam's moments and step in pinned host memory."""

    name: ClassVar[str] = "offloaded_optimizer"
    optimizer_place: ClassVar[Place] = Place.host
    max_lanes: ClassVar[int | None] = 1

    pin_memory: bool = True
    """Page-locked host memory where there is CUDA: copies run at the bus's full speed and beside
    other work. false where locked memory is scarce; pageable copies take about twice as long."""

    def build_optimizer(
        self, model: ActorCritic, placement: Placement, *, eps: float
    ) -> LaneOptimizer:
        """Return Adam on the host."""
        return HostAdam(list(model.parameters()), placement, eps=eps, pin_memory=self.pin_memory)


class HostAdam(LaneOptimizer):
    """torch's fused AdamW (weight decay 0) over host copies of the device's parameters.

    The fused kernel reads ``grad_scale`` and ``found_inf`` from the optimizer, the contract that
    ``torch.amp.GradScaler`` uses: gradients are divided by the first, and a nonzero second skips
    the step, moments and step count included.
    """

    def __init__(
        self, parameters: list[Parameter], placement: Placement, *, eps: float, pin_memory: bool
    ) -> None:
        """Copy ``parameters`` (1, …) to the host; one lane only."""
        assert parameters[0].shape[0] == 1, "host Adam steps one lane"
        self.parameters = parameters
        self._placement = placement
        self._host: list[Parameter] = []
        for parameter in parameters:
            host = placement.empty_host_like(parameter.detach(), pin=pin_memory)
            placement.move(parameter.detach(), Place.host, out=host)
            self._host.append(Parameter(host))
            self._host[-1].grad = placement.empty_host_like(host, pin=pin_memory)
        self._adamw = torch.optim.AdamW(
            self._host, lr=0.0, betas=BETAS, eps=eps, weight_decay=0.0, fused=True
        )

    @torch.no_grad()
    def step(self, *, lr: Tensor, max_grad_norm: Tensor, active: Tensor | None = None) -> Tensor:
        """See ``LaneOptimizer.step``; waits for the gradients before the host's step."""
        for parameter, host in zip(self.parameters, self._host):
            assert parameter.grad is not None
            self._placement.move(parameter.grad, Place.host, out=host.grad, non_blocking=True)
        grad_norm = torch.stack(
            [torch.linalg.vector_norm(p.grad) for p in self.parameters if p.grad is not None]
        ).norm()
        is_active = torch.ones_like(lr) if active is None else active.to(lr.dtype)
        scalars = torch.stack((lr[0], clip_coefficient(grad_norm, max_grad_norm[0]), is_active[0]))
        # Blocking, so the gradients queued before it on the same stream have arrived too.
        host_lr, coefficient, takes_step = self._placement.move(scalars, Place.host).unbind()
        self._adamw.param_groups[0]["lr"] = host_lr.item()
        self._adamw.grad_scale = coefficient.reciprocal().float()  # type: ignore[attr-defined]
        self._adamw.found_inf = 1.0 - takes_step.float()  # type: ignore[attr-defined]
        self._adamw.step()
        for parameter, host in zip(self.parameters, self._host):
            self._placement.move(host.detach(), Place.device, out=parameter.data, non_blocking=True)
        return grad_norm.unsqueeze(0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the host's weights, moments and step counts."""
        state = {}
        for i, host in enumerate(self._host):
            state[f"weights.{i}"] = host.detach()
            for key, value in self._adamw.state[host].items():
                state[f"{key}.{i}"] = value
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the host's state; the device's weights are the model's own to restore."""
        with torch.no_grad():
            for i, host in enumerate(self._host):
                host.copy_(state[f"weights.{i}"])
                # Before the first step there are no moments: then none may be left over either.
                self._adamw.state[host] = {
                    key: state[f"{key}.{i}"].clone()
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{key}.{i}" in state
                }
