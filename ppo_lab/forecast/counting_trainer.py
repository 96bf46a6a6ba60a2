"""A trainer that counts its memory by category: while it is built, and in its first iteration.

Later iterations need what the first did: nothing is allocated for good after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ppo_lab.config.run import Config
from ppo_lab.devices.placement import Placement
from ppo_lab.forecast.categories import Category
from ppo_lab.forecast.ledger import Ledger, tensors_of
from ppo_lab.ppo.advantages import Advantages
from ppo_lab.ppo.diagnostics import UpdateDiagnostics
from ppo_lab.ppo.rollout import Rollout, RolloutRows
from ppo_lab.tracking import Record
from ppo_lab.training.recorder import IterationTensors
from ppo_lab.training.trainer import Trainer

__all__ = ["CountedTrainer"]

_GIB = 1024**3


class CountedTrainer(Trainer):
    """Counts into ``ledger``; its phases are build, rollout, advantages, update, diagnostics."""

    def __init__(
        self,
        configs: Sequence[Config],
        on_record: Callable[[int, Record], None] | None = None,
        planned_steps: int | None = None,
    ) -> None:
        """Build as ``Trainer`` does, and count it."""
        self.ledger = Ledger(configs[0].torch_device)
        self._stop_watching: list[Callable[[], None]] = []
        with self.ledger, self.ledger.phase("build"):
            super().__init__(configs, on_record, planned_steps)
            self._watch()

    def _build_placement(self, device: torch.device) -> Placement:
        return Placement(device, watcher=self.ledger)

    def iterate(self) -> None:
        """See ``Trainer.iterate``; the first one is counted."""
        if self.iteration:
            super().iterate()
            return
        with self.ledger:
            super().iterate()
        self.stop_counting()
        counts = self.ledger.num_operations
        self.meters.num_operations = {phase: counts[phase] for phase in counts if phase != "build"}

    def stop_counting(self) -> None:
        """Take the hooks off the model and the optimizer; the next iterations run as ever."""
        for stop in self._stop_watching:
            stop()
        self._stop_watching.clear()
        self.placement.watcher = None

    def collect(self) -> Rollout:
        """See ``Trainer.collect``."""
        with self._counting("rollout"):
            rollout = super().collect()
            self._mark(Category.environment, _tensors_held_by(self.env))
            self._mark(Category.rollout, rollout)
        return rollout

    def advantages(self, rollout: Rollout) -> Advantages:
        """See ``Trainer.advantages``."""
        with self._counting("advantages"):
            advantages = super().advantages(rollout)
            self._mark(Category.rollout, advantages)
        return advantages

    def update(self, rows: RolloutRows) -> UpdateDiagnostics:
        """See ``Trainer.update``."""
        self._mark(Category.rollout, rows)
        with self._counting("update"):
            return super().update(rows)

    def diagnose(
        self, rollout: Rollout, rows: RolloutRows, diagnostics: UpdateDiagnostics
    ) -> IterationTensors:
        """See ``Trainer.diagnose``."""
        with self._counting("diagnostics"):
            return super().diagnose(rollout, rows, diagnostics)

    def _measure(self) -> dict[str, float]:
        """See ``Trainer._measure``; the first iteration has the ledger's peak by category too."""
        metrics = super()._measure()
        if self._is_counting:
            peak = self.ledger.peak
            metrics["memory/ledger_gib"] = peak.total / _GIB
            for category, num_bytes in peak.by_category().items():
                metrics[f"memory/ledger_{category.value}_gib"] = num_bytes / _GIB
        return metrics

    @property
    def _is_counting(self) -> bool:
        return bool(self._stop_watching)

    def _counting(self, phase: str) -> AbstractContextManager[None]:
        return self.ledger.phase(phase) if self._is_counting else nullcontext()

    def _mark(self, category: Category, tensors: Sequence[Tensor] | Iterator[Tensor]) -> None:
        if self._is_counting:
            self.ledger.mark(category, tensors)

    def _watch(self) -> None:
        """Name what was built, and see that gradients and activations get their names."""
        groups = self.model.groups()
        self._network_of = {p: name for name, group in groups.items() for p in group}
        self.ledger.mark_shared(Category.weights, list(self._network_of.items()))
        self._mark_optimizer()
        self.ledger.mark(Category.environment, _tensors_held_by(self.env))
        trunks = {"trunk": self.model.actor}
        if not self.model.shares_trunk:
            trunks = {"actor": self.model.actor, "critic": self.model.critic}
        modules = [*trunks.items(), ("actor", self.model.policy_head)]
        for network, module in [*modules, ("critic", self.model.value_head)]:
            self._stop_watching += self.ledger.watch_forward(network, module)
        self._stop_watching += self.ledger.watch(groups)
        self._stop_watching.append(self._watch_steps())

    def _watch_steps(self) -> Callable[[], None]:
        """Name the optimizer's steps, and after each the state that it may have fetched."""
        step = self.optimizer.step

        def counted_step(**arguments: Tensor | None) -> Tensor:
            with self.ledger.doing("optimizer step"):
                norms = step(**arguments)  # type: ignore[arg-type]
            self._mark_optimizer()
            self._after_gradient_step()
            return norms

        self.optimizer.step = counted_step  # type: ignore[method-assign]
        return lambda: self.optimizer.__dict__.pop("step")

    def _after_gradient_step(self) -> None:
        """Called while counting, after each step of the optimizer."""

    def _mark_optimizer(self) -> None:
        networks = self._network_of
        self.ledger.mark_shared(
            Category.optimizer,
            (
                (tensor, None if parameter is None else networks[parameter])
                for tensor, parameter in self.optimizer.state_parts()
            ),
        )


def _tensors_held_by(value: object) -> Iterator[Tensor]:
    """Return every tensor that an environment keeps, in its own attributes and their parts."""
    if type(value).__module__.startswith("ppo_lab.envs."):
        for attribute in vars(value).values():
            yield from _tensors_held_by(attribute)
    else:
        yield from tensors_of(value)
