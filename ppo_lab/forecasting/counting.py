"""Counts a trainer's memory by category: while it is built, and in its first iteration.

Nothing is allocated for good after the first iteration, so later ones need the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ppo_lab.config.run import Config
from ppo_lab.devices.observers import PhaseObserver
from ppo_lab.devices.placement import Placement, tensors_of
from ppo_lab.forecasting.categories import Category
from ppo_lab.forecasting.ledger import Ledger
from ppo_lab.networks import ActorCritic
from ppo_lab.tracking import Record
from ppo_lab.training.trainer import Trainer

__all__ = ["Counting", "counted_trainer", "ledger_of"]

_GIB = 1024**3
_ROLLOUT_PHASES = ("rollout", "evaluation", "advantages")  # that add to what an update reads


def counted_trainer(
    configs: Sequence[Config],
    on_record: Callable[[int, Record], None] | None = None,
    *,
    observers: Sequence[PhaseObserver] = (),
    placement: Placement | None = None,
    **options: Any,  # noqa: ANN401 - those of Trainer
) -> Trainer:
    """Return a ``Trainer`` whose memory is counted; the arguments are those of ``Trainer``."""
    placement = placement or Placement(configs[0].torch_device)
    counting = Counting(placement)
    observers = [counting, *observers]
    with counting.ledger, counting.ledger.phase("build"):
        trainer = Trainer(configs, on_record, observers=observers, placement=placement, **options)
        counting.watch(trainer)
    return trainer


def ledger_of(trainer: Trainer) -> Ledger | None:
    """Return the ledger of a trainer from ``counted_trainer``; None for any other."""
    return next((o.ledger for o in trainer.observers.members if isinstance(o, Counting)), None)


class Counting(PhaseObserver):
    """Counts a trainer's phases in ``ledger`` until the first iteration is recorded."""

    def __init__(self, placement: Placement) -> None:
        """Count what lies in the two sides of ``placement``."""
        self.ledger = Ledger(placement)
        self._removers: list[Callable[[], None]] = []  # of hooks; empty when not counting

    def watch(self, trainer: Trainer) -> None:
        """Mark what ``trainer`` has allocated, and add hooks for gradients and activations."""
        self._meters, self._env, self._optimizer = trainer.meters, trainer.env, trainer.optimizer
        model, ledger = trainer.model, self.ledger
        groups = model.groups()
        self._network_of = {p: name for name, group in groups.items() for p in group}
        ledger.mark_shared(Category.weights, list(self._network_of.items()))
        self._mark_optimizer()
        ledger.mark(Category.environment, _tensors_held_by(self._env))
        heads = [("actor", model.policy_head)]
        if model.value_head is not None:
            heads.append(("critic", model.value_head))
        for network, module in [*model.trunks().items(), *heads]:
            self._removers += ledger.watch_forward(network, module)
        if trainer.spec.num_tokens is not None:
            self._removers += ledger.watch_logits("actor", model.policy_head)
        if trainer.reference is not None:
            self._watch_reference(trainer.reference.model)
        self._removers += ledger.watch(groups)

    def _watch_reference(self, model: ActorCritic) -> None:
        """Mark the reference's weights: those that exist, and copies as they are used."""
        ledger = self.ledger
        ledger.mark(Category.weights, model.parameters(), "reference")
        for module in (model.actor, model.policy_head):
            self._removers += ledger.watch_forward("reference", module, marks_weights=True)
        self._removers += ledger.watch_logits("reference", model.policy_head)

    @contextmanager
    def phase(self, name: str, *inputs: object) -> Iterator[None]:
        """Count a phase of the first iteration."""
        if not self._removers:
            yield
            return
        with self.ledger:
            if name == "update":
                self.ledger.mark(Category.rollout, tensors_of(inputs))
            with self.ledger.phase(name):
                yield

    def finish(self, name: str, result: object) -> None:
        """Mark the rollout, the advantages, and what the environments have allocated."""
        if not self._removers or name not in _ROLLOUT_PHASES:
            return
        if name == "rollout":
            self.ledger.mark(Category.environment, _tensors_held_by(self._env))
        self.ledger.mark(Category.rollout, tensors_of(result))

    @contextmanager
    def optimizer_step(self) -> Iterator[None]:
        """Name an optimizer step in the ledger, then mark the state that it may have moved."""
        self.ledger.doing = "optimizer step"
        yield
        self.ledger.doing = None
        if self._removers:
            self._mark_optimizer()

    def read(self) -> dict[str, float]:
        """Return the first iteration's peak by category, and stop counting."""
        if not self._removers:
            return {}
        for remove in self._removers:
            remove()
        self._removers.clear()
        counts, peak = self.ledger.num_operations, self.ledger.peak
        self._meters.num_operations = {phase: counts[phase] for phase in counts if phase != "build"}
        return {"memory/ledger_gib": peak.total / _GIB} | {
            f"memory/ledger_{category.value}_gib": num_bytes / _GIB
            for category, num_bytes in peak.by_category().items()
        }

    def _mark_optimizer(self) -> None:
        parts = self._optimizer.state_parts()
        owned = ((tensor, self._network_of[p] if p is not None else None) for tensor, p in parts)
        self.ledger.mark_shared(Category.optimizer, owned)


def _tensors_held_by(value: object) -> Iterator[Tensor]:
    """Return every tensor that an environment keeps, in its own attributes and their parts."""
    if type(value).__module__.startswith("ppo_lab.envs."):
        for name in (*getattr(value, "__dict__", ()), *getattr(value, "__slots__", ())):
            yield from _tensors_held_by(getattr(value, name))
    else:
        yield from tensors_of(value)
