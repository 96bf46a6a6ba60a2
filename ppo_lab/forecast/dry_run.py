"""One iteration without numbers: the trainer's own program on fake tensors, counted.

A fake tensor (torch's FakeTensorMode) has a shape, a type and a size, and no memory. So the real
program runs as if on one device, for networks of any size, in seconds and in little host memory,
and needs no CUDA: host and device are told apart by what ``Placement`` says.

Memory does not depend on how many steps are taken, so few are. The bytes that cross the bus do,
each step by the same number: they are counted for two lengths and carried on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ppo_lab.config.choices import Compile, MatmulPrecision, Profile
from ppo_lab.config.run import Config
from ppo_lab.devices.placement import Traffic
from ppo_lab.envs.base import Env
from ppo_lab.forecast.counting_trainer import CountedTrainer
from ppo_lab.forecast.ledger import Ledger
from ppo_lab.ppo.collector import MAX_BUFFERED_STEPS
from ppo_lab.ppo.diagnostics import UpdateDiagnostics
from ppo_lab.ppo.rollout import Rollout, RolloutRows, lane_rows
from ppo_lab.utils import torch_private
from ppo_lab.utils.torch_private import DataDependentOutputException, FakeTensor, FakeTensorMode

__all__ = ["BusBytes", "DryRun", "dry_run"]

_Result = TypeVar("_Result")

_GRADIENT_STEPS = 2  # from the second on, what the first left behind is there


@dataclass(frozen=True)
class BusBytes:
    """What crosses the bus."""

    startup: Traffic
    gradient_step: Traffic
    """Of each gradient step; 0 where an update has one alone."""
    iteration: Traffic
    """Of each iteration: rollout, update and record. Where environments live on the host, a step
    that ends an episode sends its flags and last observations beside."""


@dataclass(frozen=True)
class DryRun:
    """What one iteration would hold and move."""

    ledger: Ledger
    bus: BusBytes
    num_parameters: dict[str, int]
    """By network: actor, critic and, where shared, trunk."""


def dry_run(config: Config) -> DryRun:
    """Build ``config`` and go through one iteration on fake tensors, as if on one CUDA device."""
    on_cpu = dataclasses.replace(
        config,
        device="cpu",
        profile=Profile.never,
        compile=Compile.never,  # as always may be impossible there
        matmul_precision=MatmulPrecision.highest,
        vram_limit_gib=None,
    )
    num_threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        # Without a rule for fake tensors an operation would run on real ones, of the real size.
        with _NoNumbers(allow_fallback_kernels=False):
            trainer = _DryTrainer(on_cpu)
            bus = trainer.dry_iteration()
            groups = trainer.model.groups()
            num_parameters = {
                name: sum(parameter.numel() for parameter in group)
                for name, group in groups.items()
            }
    finally:
        torch.set_num_threads(num_threads)
        torch.set_float32_matmul_precision(precision)
    return DryRun(trainer.ledger, bus, num_parameters)


class _DryTrainer(CountedTrainer):
    """Takes few steps of storage that has its full size."""

    def __init__(self, config: Config) -> None:
        """Build it on fake tensors."""
        self._after_steps: list[Traffic] = []  # what had been moved after each gradient step
        self._orders = Traffic()  # the part of it that epochs moved as they began
        self._num_epochs_begun = 0  # of all passes
        super().__init__([config])

    def _build_env(self, seeds: Tensor) -> Env:
        return self.config.env.build(
            seeds=seeds,
            num_envs=self.config.num_envs,
            placement=self.placement,
            gamma=self._lanes.gamma,
            dtype=self.config.weights_dtype,
            is_dry=True,
        )

    def dry_iteration(self) -> BusBytes:
        """Count one iteration's memory, and return what would cross the bus."""
        startup = self._traffic()
        num_dry = min(self.config.num_steps, MAX_BUFFERED_STEPS)
        with self.ledger:
            dry_steps, rollout = self._moved(lambda: self._rollout(num_dry))
            rows = lane_rows(rollout, self.advantages(rollout))
            updated, diagnostics = self._moved(lambda: self._dry_update(rows))
            diagnosed, tensors = self._moved(lambda: self.diagnose(rollout, rows, diagnostics))
            recorded, _ = self._moved(lambda: self._recorder.fetch(tensors))
        self.stop_counting()
        one_step, _ = self._moved(lambda: self._rollout(1))
        collected = one_step.plus(
            dry_steps.since(one_step), (self.config.num_steps - 1, max(1, num_dry - 1))
        )
        gradient_step, updated = self._carry_on(updated)
        iteration = collected.plus(updated).plus(diagnosed).plus(recorded)
        return BusBytes(startup, gradient_step, iteration)

    def _rollout(self, num_steps: int) -> Rollout:
        self._collector.num_dry_steps = num_steps
        return self.collect()

    def _dry_update(self, rows: RolloutRows) -> UpdateDiagnostics:
        components = self._compilation.components
        store = components.plan.store
        index_to_store = store.index_to_store

        def counted(index: Tensor) -> Tensor:
            moved, placed = self._moved(lambda: index_to_store(index))
            self._orders = self._orders.plus(moved)
            self._num_epochs_begun += 1
            return placed

        store.index_to_store = counted  # type: ignore[method-assign]
        few_steps = dataclasses.replace(components.plan, num_dry_steps=_GRADIENT_STEPS)
        self._compilation.components = dataclasses.replace(components, plan=few_steps)
        return self.update(rows)

    def _after_gradient_step(self) -> None:
        self._after_steps.append(self._traffic().since(self._orders))

    def _carry_on(self, updated: Traffic) -> tuple[Traffic, Traffic]:
        """Return what one gradient step moves, of all passes, and what a whole update does.

        The second step of each pass is asked, which fetches nothing that the pass needs as a whole;
        where there is no second, nothing has to be carried on.
        """
        steps = self._after_steps
        num_updates = self.config.num_epochs * self.config.num_minibatches
        num_dry = min(num_updates, _GRADIENT_STEPS)
        gradient_step = Traffic()
        for last in range(1, len(steps), num_dry) if num_dry > 1 else ():
            gradient_step = gradient_step.plus(steps[last].since(steps[last - 1]))
        num_epochs = self.config.num_epochs * len(steps) // num_dry  # of all passes
        more_epochs = (num_epochs - self._num_epochs_begun, self._num_epochs_begun)
        whole = updated.plus(gradient_step, (num_updates - num_dry, 1))
        return gradient_step, whole.plus(self._orders, more_epochs)

    def _moved(self, work: Callable[[], _Result]) -> tuple[Traffic, _Result]:
        """Return what ``work`` moved over the bus, and its result."""
        before = self._traffic()
        result = work()
        return self.placement.traffic.since(before), result

    def _traffic(self) -> Traffic:
        return dataclasses.replace(self.placement.traffic)


class _NoNumbers(FakeTensorMode):
    """Fake tensors that answer 1 when asked for a value: memory does not depend on it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; the guard would cost a quarter of the time

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's signature
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        if func is torch_private.fused_adamw:
            return None  # torch has no rule for it; it works in place and returns nothing
        try:
            result = self.dispatch(func, types, args, kwargs or {})
        except DataDependentOutputException:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if func is torch.ops.aten.lift_fresh.default:
            cast(
                FakeTensor, result
            ).constant = None  # else all that follows from torch.tensor(...) is computed
        return result
