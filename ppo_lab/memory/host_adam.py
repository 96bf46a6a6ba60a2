"""Adam on the host: weights and gradients on the device, moments and the step in host memory.

Each gradient step copies the gradients to the host (4 B per parameter in float32) and the new
weights to the device (4 B); the moments are never copied. Gradient clipping, which torchao's
CPUOffloadOptimizer leaves out, is exact: the norm is taken on the device over whole gradients, and
the host's fused AdamW divides the gradients by the inverse of the clip coefficient as it reads them
(its ``grad_scale``), without another pass over them.

On CUDA there are three queues: the compute stream, and one stream for each direction of the bus.
One gradient step in time:

    compute   backward ........ norms, clip |                         | waits for the last weights
    down          gradient by gradient .... |
    host                                    | step 1 | step 2 | ... |
    up                                               | weights 1 | weights 2 | ...

How every buffer is protected from being overwritten while it is read:
- a gradient on the device: the host waits for the event of its copy before it steps the parameter,
  and gradients are freed only after the step;
- a gradient on the host: only the host's own step reads it, which returns before the next backward
  pass can send another;
- weights on the device: the norms need the whole backward pass and the host waits for them, so
  nothing on the compute stream reads weights when the first copy up begins, and the compute stream
  waits for the last one;
- weights on the host: the next step waits for norms that the compute stream computes after it has
  waited for the last copy up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adamw import adamw

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.ppo.adam import BETAS, LaneAdam, LaneOptimizer, clip_coefficient, group_by_size

__all__ = ["HostAdam", "largest_first"]

_CHUNK_SIZE = 1 << 20
"""Elements stepped in one call. A call costs as much as stepping 50,000 of them (CPU, one thread),
so a twentieth is lost; smaller chunks would start the first copy up earlier, at a higher price."""


class _Copies:
    """Copies of gradients to the host and of weights to the device; see the module.

    On a CPU they run in program order: the streams and events of ``torch.cpu`` do nothing.
    """

    def __init__(self, placement: Placement) -> None:
        self.backend = torch.cuda if placement.is_cuda else torch.cpu
        self._placement, self._device = placement, placement.device
        # Created once: the allocator never gives blocks of one stream to another.
        self._down, self._up = (self.backend.Stream(placement.device) for _ in range(2))

    def send_down(self, gradient: Tensor, host: _HostParameter) -> None:
        """Copy a gradient to the host as soon as the compute stream has finished it."""
        self._down.wait_stream(self.backend.current_stream(self._device))
        with self.backend.stream(self._down):
            self._placement.move(gradient, Place.host, out=host.gradient, non_blocking=True)
        host.arrival.record(self._down)

    def send_up(self, host: _HostParameter, parameter: Parameter) -> None:
        """Copy new weights to the device while the host steps the next chunk."""
        with self.backend.stream(self._up):
            self._placement.move(host.weights, Place.device, out=parameter.data, non_blocking=True)

    def join(self) -> None:
        """Make the compute stream wait for the last copy up."""
        self.backend.current_stream(self._device).wait_stream(self._up)


class _HostParameter:
    """One parameter's weights, gradient and Adam state on the host.

    It does not refer to the parameter, whose hook refers to it: a cycle would keep the memory of a
    finished run until the garbage collector's next round.
    """

    def __init__(
        self, parameter: Parameter, placement: Placement, copies: _Copies, *, pin: bool
    ) -> None:
        weights = parameter.detach()
        self.weights = placement.empty_host_like(weights, pin=pin)
        placement.move(weights, Place.host, out=self.weights)
        self.gradient = placement.empty_host_like(weights, pin=pin)
        # Moments are never copied, so they need no pinned memory.
        self.exp_avg = placement.empty_host_like(weights, pin=False).zero_()
        self.exp_avg_sq = placement.empty_host_like(weights, pin=False).zero_()
        self.step = placement.empty_host(dtype=torch.float32, pin=False).zero_()
        self.expects_gradient = self.has_gradient = False
        self.arrival = copies.backend.Event()  # of the gradient
        self._copies = copies
        parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def _on_gradient(self, parameter: Tensor) -> None:
        """Copy the gradient that the backward pass has just added to, if it is complete."""
        if self.expects_gradient:
            assert parameter.grad is not None
            self._copies.send_down(parameter.grad, self)
            self.has_gradient = True


class HostAdam(LaneOptimizer):
    """torch's fused AdamW (weight decay 0) over host copies of the device's parameters; one lane.

    A share of the parameters may keep its moments on the device, where ``LaneAdam`` steps them.
    The fused kernel takes ``grad_scale`` and ``found_inf``, meant for ``torch.amp.GradScaler``:
    gradients are divided by the first, and a nonzero second skips the step, moments and step count
    included.
    """

    def __init__(
        self,
        *groups: Iterable[Parameter],
        placement: Placement,
        eps: float,
        pin_memory: bool,
        fraction: float = 1.0,
    ) -> None:
        """Take groups of parameters (1, ...), each clipped by its own norm.

        ``fraction`` of the parameters, see ``largest_first``, are copied to the host.
        """
        self._groups = [list(group) for group in groups]
        self.num_clip_groups = len(self._groups)
        self.parameters = [parameter for group in self._groups for parameter in group]
        assert self.parameters[0].shape[0] == 1, "host Adam steps one lane"
        self._placement, self._eps = placement, eps
        self._copies = _Copies(placement)
        self._hosts = {
            parameter: _HostParameter(parameter, placement, self._copies, pin=pin_memory)
            for parameter in largest_first(self.parameters, fraction)
        }
        resident = [[p for p in group if p not in self._hosts] for group in self._groups]
        self._resident = LaneAdam(*resident, eps=eps) if any(resident) else None
        # The backward pass completes the gradients of the last layers first.
        self._chunks = [
            (number, chunk)
            for number, group in enumerate(self._groups)
            for chunk in group_by_size([p for p in group[::-1] if p in self._hosts], _CHUNK_SIZE)
        ]

    def prepare_final_backward(self) -> None:
        """Copy each gradient to the host as the next backward pass completes it."""
        for host in self._hosts.values():
            host.expects_gradient = True

    @torch.no_grad()
    def step(self, *, lr: Tensor, max_grad_norm: Tensor, active: Tensor | None = None) -> Tensor:
        """See ``LaneOptimizer.step``; the host waits for the backward pass and steps in chunks."""
        has_all = all(host.has_gradient for host in self._hosts.values())
        assert has_all, "prepare_final_backward first"
        resident = self._resident.take_gradients() if self._resident else [[] for _ in self._groups]
        norms = torch.stack(
            [
                _joint_norm([*gradients, *(p.grad for p in group if p.grad is not None)])
                for gradients, group in zip(resident, self._groups)
            ]
        )  # (G, 1)
        is_active = torch.ones_like(lr) if active is None else active.to(lr.dtype)
        scalars = torch.cat((lr, is_active, clip_coefficient(norms, max_grad_norm).flatten()))
        with self._placement.placing(Place.host):
            host_lr, takes_step, *coefficients = self._placement.move(scalars, Place.host).unbind()
            found_inf = 1.0 - takes_step.float()
            scales = [coefficient.reciprocal().float() for coefficient in coefficients]
        if self._resident is not None:  # the device steps its share beside the host
            self._resident.apply(resident, norms, lr=lr, max_grad_norm=max_grad_norm, active=active)
        for group, parameters in self._chunks:
            self._step_chunk(parameters, host_lr, scales[group], found_inf)
        self._copies.join()
        return norms

    def _step_chunk(
        self, parameters: list[Parameter], lr: Tensor, grad_scale: Tensor, found_inf: Tensor
    ) -> None:
        """Step some parameters and copy their new weights to the device."""
        hosts = [self._hosts[parameter] for parameter in parameters]
        for host in hosts:
            host.arrival.synchronize()
            host.expects_gradient = host.has_gradient = False
        adamw(
            [host.weights for host in hosts],
            [host.gradient for host in hosts],
            [host.exp_avg for host in hosts],
            [host.exp_avg_sq for host in hosts],
            [],
            [host.step for host in hosts],
            fused=True,
            grad_scale=grad_scale,
            found_inf=found_inf,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=lr,
            weight_decay=0.0,
            eps=self._eps,
            maximize=False,
        )
        for host, parameter in zip(hosts, parameters):
            self._copies.send_up(host, parameter)

    def take_weights(self) -> None:
        """See ``LaneOptimizer.take_weights``: the host steps its own copies."""
        for parameter, host in self._hosts.items():
            host.weights.copy_(parameter.detach())

    def state_parts(self) -> Iterator[tuple[Tensor, Parameter | None]]:
        """See ``LaneOptimizer.state_parts``: moments and step count of each parameter."""
        if self._resident is not None:
            yield from self._resident.state_parts()
        for parameter, host in self._hosts.items():
            for tensor in (host.exp_avg, host.exp_avg_sq, host.step):
                yield tensor, parameter


def largest_first(parameters: Sequence[Parameter], fraction: float) -> list[Parameter]:
    """Return at most ``fraction`` of the parameters, by elements, in their own order.

    Whole tensors: from the largest to the smallest, each that still fits.
    """
    free = fraction * sum(parameter.numel() for parameter in parameters)
    chosen: set[int] = set()
    for number in sorted(range(len(parameters)), key=lambda n: -parameters[n].numel()):
        if (size := parameters[number].numel()) <= free:
            chosen.add(number)
            free -= size
    return [parameters[number] for number in sorted(chosen)]


def _joint_norm(gradients: list[Tensor]) -> Tensor:
    """Return the norm (1,) of all gradients."""
    return torch.stack([torch.linalg.vector_norm(g) for g in gradients]).norm().unsqueeze(0)
