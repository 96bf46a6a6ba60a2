"""Dry run: one iteration of the real program on fake tensors, counted by the ledger.

A fake tensor (torch's FakeTensorMode) has a shape and a type, but no memory. So networks of any
size are counted in seconds, with little host memory and without CUDA: ``Placement`` tells host from
device.

Memory does not depend on the number of steps, so only a few are run. Bus traffic does, linearly: it
is counted for few steps and extrapolated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from ppo_lab.config.choices import Compile, Profile
from ppo_lab.config.run import Config
from ppo_lab.devices.observers import PhaseObserver
from ppo_lab.devices.placement import Placement, Traffic
from ppo_lab.forecasting.categories import HostBytes, Peak
from ppo_lab.forecasting.counting import counted_trainer, ledger_of
from ppo_lab.ppo.collector import MAX_BUFFERED_STEPS
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils import torch_private
from ppo_lab.utils.torch_private import DataDependentOutputException, FakeTensor, FakeTensorMode

__all__ = ["BusBytes", "DryRun", "dry_run"]

IntArray = np.ndarray[Any, np.dtype[np.int64]]

_GRADIENT_STEPS = 2  # of each pass; the second one finds the optimizer's state allocated


@dataclass(frozen=True)
class BusBytes:
    """Traffic between host and device."""

    startup: Traffic
    gradient_step: Traffic
    """Of each gradient step; 0 if an update has only one."""
    iteration: Traffic
    """Of each iteration: rollout, update and record. For environments on the host, flags and last
    observations of steps that end an episode are not included; whole episodes are as long as they
    may be."""


@dataclass(frozen=True)
class DryRun:
    """Memory and bus traffic of one iteration, in bytes."""

    phase_peaks: dict[str, Peak]
    """Of the tensors on the device, by phase: build, rollout, advantages, update, diagnostics; and,
    of texts, evaluation by critic and reference before the advantages."""
    host_peak: HostBytes
    bus: BusBytes
    num_parameters: dict[str, int]
    """By network: actor, critic, where shared, trunk, and of texts the frozen reference."""

    @property
    def peak(self) -> Peak:
        """The largest of the phases' peaks."""
        return max(self.phase_peaks.values(), key=lambda peak: peak.total)


def dry_run(config: Config) -> DryRun:
    """Run one iteration of ``config`` on fake tensors, as if on one CUDA device."""
    on_cpu = dataclasses.replace(
        config, device="cpu", profile=Profile.never, compile=Compile.never, vram_limit_gib=None
    )
    placement = Placement(on_cpu.torch_device)
    bus = _BusCounter(placement)
    # Without a rule for fake tensors an operation would run on real ones, of the real size.
    with _NoNumbers(allow_fallback_kernels=False):
        trainer = counted_trainer(
            [on_cpu], observers=[bus], placement=placement, dry_steps=_GRADIENT_STEPS
        )
        startup = dataclasses.replace(placement.traffic)
        _dry_iteration(trainer, bus)
        groups = trainer.model.groups()
        if trainer.reference is not None:
            groups["reference"] = list(trainer.reference.model.parameters())
        num_parameters = {name: sum(p.numel() for p in group) for name, group in groups.items()}
    ledger = ledger_of(trainer)
    assert ledger is not None
    traffic = BusBytes(startup, *_extrapolate(on_cpu, bus))
    return DryRun(ledger.phase_peaks, ledger.host_peak, traffic, num_parameters)


class _BusCounter(PhaseObserver):
    """Counts the traffic of each phase and optimizer step, as [h2d, d2h]."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self.moved: dict[str, IntArray] = {}
        """By phase."""
        self.after_steps: list[IntArray] = []
        """Traffic since the start, after each optimizer step."""

    def _now(self) -> IntArray:
        return np.array(dataclasses.astuple(self._placement.traffic))

    @contextmanager
    def phase(self, name: str, *_inputs: object) -> Iterator[None]:
        before = self._now()
        yield
        self.moved[name] = self._now() - before

    @contextmanager
    def optimizer_step(self) -> Iterator[None]:
        yield
        self.after_steps.append(self._now())


def _dry_iteration(trainer: Trainer, bus: _BusCounter) -> None:
    """Run the phases of an iteration with few steps; then the parts to extrapolate from."""
    trainer.collector.num_dry_steps = MAX_BUFFERED_STEPS
    _, tensors = trainer.run_phases()
    trainer.observers.read()  # ends the counting of memory
    with bus.phase("record"):
        trainer.recorder.fetch(tensors)
    with bus.phase("order of an epoch"):
        trainer.plan.store.index_to_store(
            torch.zeros(1, trainer.config.num_rows, dtype=torch.int64)
        )
    trainer.collector.num_dry_steps = 1
    with bus.phase("rollout of one step"):
        trainer.collect()


def _extrapolate(config: Config, bus: _BusCounter) -> Iterator[Traffic]:
    """Yield the traffic of one gradient step, over all passes, and that of an iteration."""
    moved, order = bus.moved, bus.moved["order of an epoch"]
    num_steps = config.num_epochs * config.num_minibatches
    num_dry = min(num_steps, _GRADIENT_STEPS)
    passes = np.stack(bus.after_steps).reshape(-1, num_dry, 2)
    gradient_step = (passes[:, -1] - passes[:, 0]).sum(0)
    if num_dry > 1 and config.num_minibatches == 1:  # the second step began another epoch
        gradient_step -= len(passes) * order
    more_epochs = len(passes) * (config.num_epochs - math.ceil(num_dry / config.num_minibatches))
    update = moved["update"] + (num_steps - num_dry) * gradient_step + more_epochs * order

    one, num_dry = moved["rollout of one step"], min(config.rollout_steps, MAX_BUFFERED_STEPS)
    more = (moved["rollout"] - one) * (config.rollout_steps - 1)
    more_steps, rest = np.divmod(more, max(1, num_dry - 1))
    assert not rest.any()
    rest_of_iteration = sum(
        moved[name] for name in ("evaluation", "diagnostics", "record") if name in moved
    )
    iteration = one + more_steps + update + rest_of_iteration
    yield from (Traffic(*traffic.tolist()) for traffic in (gradient_step, iteration))


class _NoNumbers(FakeTensorMode):
    """Fake tensors whose values read as 1: memory does not depend on them."""

    # Nothing is compiled here; the guard would cost a quarter of the time.
    _should_skip_dynamo = classmethod(lambda _: False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's signature
        if func is torch_private.fused_adamw:
            return None  # torch has no rule for it; it works in place and returns nothing
        try:
            result = self.dispatch(func, types, args, kwargs or {})
        except DataDependentOutputException:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if func is torch.ops.aten.lift_fresh.default:
            # Otherwise all that follows from torch.tensor(...) is computed.
            cast(FakeTensor, result).constant = None
        return result
