"""Adam whose moments and arithmetic stay on the host, its copies beside the device's work.

On CUDA there are three queues: the compute stream, and one stream for each direction of the bus,
made once. A step in time:

    compute   backward ........ norms, clip |                         | waits for the last weights
    down          gradient by gradient .... |
    host                                    | step 1 | step 2 | ... |
    up                                               | weights 1 | weights 2 | ...

What may not be overwritten while it is read, and what sees to it:
- a gradient on the device: the host waits for its copy's event before it steps that parameter, and
  gradients are freed only after the step;
- a gradient on the host: it is read by the host's own step, which returns before the next backward
  pass can send another;
- weights on the device: the norms need the whole backward pass and the host waits for them, so
  nothing on the compute stream reads weights when the first copy up begins, and the compute stream
  waits for the last;
- weights on the host: the next step waits for norms that the compute stream computes after it
  waited for the last copy up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adamw import adamw

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.ppo.adam import BETAS, LaneOptimizer, clip_coefficient, group_by_size

__all__ = ["HostAdam"]

_CHUNK_SIZE = 1 << 20
"""Elements stepped in one call. A call costs as much as stepping 50,000 of them (CPU, one thread),
so a twentieth is lost; smaller chunks would start the first copy up earlier, at a higher price."""


class _HostParameter:
    """One parameter's weights, gradient and Adam state on the host."""

    def __init__(self, parameter: Parameter, placement: Placement, *, pin_memory: bool) -> None:
        weights = parameter.detach()
        self.weights = placement.empty_host_like(weights, pin=pin_memory)
        placement.move(weights, Place.host, out=self.weights)
        self.gradient = placement.empty_host_like(weights, pin=pin_memory)
        # Moments never cross the bus, so they need no pinned memory.
        self.exp_avg = placement.empty_host_like(weights, pin=False).zero_()
        self.exp_avg_sq = placement.empty_host_like(weights, pin=False).zero_()
        self.num_steps = placement.empty_host(dtype=torch.float32, pin=False).zero_()
        self.has_gradient = False

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds."""
        return {
            "weights": self.weights,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "step": self.num_steps,
        }


class _Copies:
    """Sends gradients down and weights up, in the order of the program."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement

    def send_down(self, gradient: Tensor, to: _HostParameter) -> None:
        """Copy a gradient to the host."""
        self._placement.move(gradient, Place.host, out=to.gradient)

    def wait_for(self, host: _HostParameter) -> None:
        """Return when the gradient has arrived."""

    def send_up(self, host: _HostParameter, to: Parameter) -> None:
        """Copy the new weights to the device."""
        self._placement.move(host.weights, Place.device, out=to.data)

    def join(self) -> None:
        """Let what is computed from here on see the new weights."""


class _StreamedCopies(_Copies):
    """The same on two streams beside the compute stream; see the module for what waits for what."""

    def __init__(self, placement: Placement) -> None:
        super().__init__(placement)
        self._device = placement.device
        # Made once: blocks that new streams have used are never given back to old ones.
        self._down, self._up = (torch.cuda.Stream(self._device) for _ in range(2))
        self._arrivals: dict[_HostParameter, torch.cuda.Event] = {}

    def send_down(self, gradient: Tensor, to: _HostParameter) -> None:
        """Copy when the compute stream has finished the gradient."""
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._down):
            self._placement.move(gradient, Place.host, out=to.gradient, non_blocking=True)
        self._arrivals.setdefault(to, torch.cuda.Event()).record(self._down)

    def wait_for(self, host: _HostParameter) -> None:
        """Make the host wait."""
        self._arrivals[host].synchronize()

    def send_up(self, host: _HostParameter, to: Parameter) -> None:
        """Copy while the host steps the next chunk."""
        with torch.cuda.stream(self._up):
            self._placement.move(host.weights, Place.device, out=to.data, non_blocking=True)

    def join(self) -> None:
        """Make the compute stream wait."""
        torch.cuda.current_stream(self._device).wait_stream(self._up)


class HostAdam(LaneOptimizer):
    """torch's fused AdamW (weight decay 0) over host copies of the device's parameters; one lane.

    The fused kernel takes ``grad_scale`` and ``found_inf``, the contract that
    ``torch.amp.GradScaler`` uses: gradients are divided by the first, and a nonzero second skips
    the step, moments and step count included.
    """

    def __init__(
        self,
        *groups: Iterable[Parameter],
        placement: Placement,
        eps: float,
        pin_memory: bool,
    ) -> None:
        """Copy groups of parameters (1, …), each clipped by its own norm, to the host."""
        self._groups = [list(group) for group in groups]
        self.num_clip_groups = len(self._groups)
        self.parameters = [parameter for group in self._groups for parameter in group]
        assert self.parameters[0].shape[0] == 1, "host Adam steps one lane"
        self._placement, self._eps = placement, eps
        self._copies = _StreamedCopies(placement) if placement.is_cuda else _Copies(placement)
        self._expects = _Switch()
        self._hosts: dict[Parameter, _HostParameter] = {}
        for parameter in self.parameters:
            host = _HostParameter(parameter, placement, pin_memory=pin_memory)
            self._hosts[parameter] = host
            parameter.register_post_accumulate_grad_hook(_Sender(host, self._copies, self._expects))
        # The last layers' gradients come first.
        self._chunks = [
            (number, chunk)
            for number, group in enumerate(self._groups)
            for chunk in group_by_size(group[::-1], _CHUNK_SIZE)
        ]

    def prepare_final_backward(self) -> None:
        """Let gradients leave as the next backward pass completes them."""
        self._expects.is_on = True

    @torch.no_grad()
    def step(self, *, lr: Tensor, max_grad_norm: Tensor, active: Tensor | None = None) -> Tensor:
        """See ``LaneOptimizer.step``; the host waits for the backward pass and steps in chunks."""
        assert all(host.has_gradient for host in self._hosts.values()), (
            "prepare_final_backward first"
        )
        self._expects.is_on = False
        norms = torch.stack([_joint_norm(group) for group in self._groups])  # (G, 1)
        is_active = torch.ones_like(lr) if active is None else active.to(lr.dtype)
        scalars = torch.cat((lr, is_active, clip_coefficient(norms, max_grad_norm).flatten()))
        with self._placement.placing(Place.host):
            host_lr, takes_step, *coefficients = self._placement.move(scalars, Place.host).unbind()
            found_inf = 1.0 - takes_step.float()
            scales = [coefficient.reciprocal().float() for coefficient in coefficients]
        for group, parameters in self._chunks:
            self._step_chunk(parameters, host_lr, scales[group], found_inf)
        self._copies.join()
        return norms

    def _step_chunk(
        self, parameters: list[Parameter], lr: Tensor, grad_scale: Tensor, found_inf: Tensor
    ) -> None:
        """Step some parameters and send their new weights up."""
        hosts = [self._hosts[parameter] for parameter in parameters]
        for host in hosts:
            self._copies.wait_for(host)
            host.has_gradient = False
        adamw(
            [host.weights for host in hosts],
            [host.gradient for host in hosts],
            [host.exp_avg for host in hosts],
            [host.exp_avg_sq for host in hosts],
            [],
            [host.num_steps for host in hosts],
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

    def state_dict(self) -> dict[str, Tensor]:
        """Return the host's weights, moments and step counts."""
        return {
            f"{key}.{i}": value
            for i, host in enumerate(self._hosts.values())
            for key, value in host.state().items()
        }

    def state_parts(self) -> Iterator[tuple[Tensor, Parameter | None]]:
        """See ``LaneOptimizer.state_parts``: moments and steps, each its parameter's."""
        for parameter, host in self._hosts.items():
            for tensor in (host.exp_avg, host.exp_avg_sq, host.num_steps):
                yield tensor, parameter

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the host's state; the device's weights are the model's own to restore."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


class _Switch:
    is_on = False


class _Sender:
    """Sends a parameter's gradient when it is complete.

    It does not hold the parameter, which holds it: a cycle would keep a finished run's memory.
    """

    def __init__(self, host: _HostParameter, copies: _Copies, expects: _Switch) -> None:
        self._host, self._copies, self._expects = host, copies, expects

    def __call__(self, parameter: Tensor) -> None:
        """Take the gradient that the backward pass has just added to."""
        if self._expects.is_on:
            assert parameter.grad is not None
            self._copies.send_down(parameter.grad, self._host)
            self._host.has_gradient = True


def _joint_norm(parameters: list[Parameter]) -> Tensor:
    """Return the norm (1,) of all gradients."""
    norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
    return torch.stack(norms).norm().unsqueeze(0)
