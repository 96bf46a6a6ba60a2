"""A gradient step as a compiled program.

Shapes: L = lanes, R = rows per lane of a rollout, E = epochs, M = minibatches per epoch,
B = rows per lane in a minibatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.compiled import with_parameters
from ppo_lab.networks import ActorCritic
from ppo_lab.optimizer import LaneAdam
from ppo_lab.ppo import ClipRange, normalize_advantages
from ppo_lab.programs import Program, ProgramSource
from ppo_lab.rollout import Batch, RolloutRows
from ppo_lab.step_log import StepLog, StepSlot, UpdateDiagnostics, stop_far_lanes
from ppo_lab.update import AdvantageNormalization, Coefficients, Objective, UpdatePlan

__all__ = ["CompiledUpdate"]


class _StepArguments(NamedTuple):
    """What one gradient step takes, apart; see ``CompiledUpdate``."""

    state: Sequence[Tensor]
    rows: RolloutRows  # (L * R, …), through all lanes
    coefficients: Coefficients
    row_index: Tensor  # (L, B)
    slot: StepSlot
    was_active: Tensor  # (L,)


class CompiledUpdate:
    """``ppo_lab.update.update`` with one program per gradient step."""

    def __init__(self, model: ActorCritic, optimizer: LaneAdam, plan: UpdatePlan) -> None:
        """Step ``optimizer``, which holds all parameters of ``model``, as ``plan`` says."""
        self._model, self._optimizer, self._plan = model, optimizer, plan
        self._state = optimizer.state_tensors
        positions = {id(p): position for position, p in enumerate(optimizer.parameters)}
        self._positions = [positions[id(parameter)] for parameter in model.parameters()]
        self._options: tuple[bool, ...] = ()
        self.program: Program | None = None

    def source(
        self, rows: RolloutRows, orders: Tensor, coefficients: Coefficients
    ) -> ProgramSource:
        """Return the program of one gradient step of such an update."""
        self._options = _options(coefficients)
        fixed = self._fixed(rows, coefficients)
        log, indices = self._log(rows, orders), self._indices(orders)
        return ProgramSource("gradient_step", self._trace, [*fixed, *_moving(log, indices, 0)])

    def fits(self, coefficients: Coefficients) -> bool:
        """Return whether the program was made for lanes that use such options."""
        return self._options == _options(coefficients)

    def __call__(
        self, rows: RolloutRows, orders: Tensor, coefficients: Coefficients
    ) -> UpdateDiagnostics:
        """Pass over ``rows`` once per order in ``orders`` (E, L, R)."""
        assert self.program is not None
        fixed = self._fixed(rows, coefficients)
        log, indices = self._log(rows, orders), self._indices(orders)
        for step in range(len(indices)):
            self.program([*fixed, *_moving(log, indices, step)])
        return log.means(coefficients.clip, self._plan.num_minibatches)

    def _log(self, rows: RolloutRows, orders: Tensor) -> StepLog:
        num_epochs, num_lanes, num_rows = orders.shape
        return StepLog(
            num_epochs * self._plan.num_minibatches,
            num_lanes,
            num_rows // self._plan.num_minibatches,
            self._optimizer.num_clip_groups,
            like=rows.advantages,
        )

    def _indices(self, orders: Tensor) -> tuple[Tensor, ...]:
        """Return the rows of each gradient step (L, B), counted through all lanes."""
        num_lanes, num_rows = orders.shape[1:]
        first_row = torch.arange(num_lanes, device=orders.device).unsqueeze(-1) * num_rows
        parts = (orders + first_row).unflatten(-1, (self._plan.num_minibatches, -1))
        return parts.transpose(1, 2).flatten(0, 1).contiguous().unbind(0)

    def _fixed(self, rows: RolloutRows, coefficients: Coefficients) -> list[Tensor]:
        """Return what is the same for all gradient steps of an update."""
        if self._plan.normalization is AdvantageNormalization.rollout:
            rows = rows._replace(advantages=normalize_advantages(rows.advantages))
        columns = (column.flatten(0, 1).contiguous() for column in rows)
        return [*self._state, *columns, *_present(coefficients)]

    def _trace(self, *tensors: Tensor) -> list[Tensor]:
        """Take one gradient step, in place."""
        arguments = self._take_apart(tensors)
        coefficients, slot = arguments.coefficients, arguments.slot
        flat, index = arguments.rows, arguments.row_index

        chosen = index.flatten()
        columns = (c.index_select(0, chosen).unflatten(0, index.shape) for c in flat[1:])
        batch = Batch(index, *columns)
        observations = flat.observations.unsqueeze(0)  # as one long lane: ``index`` counts through
        objective = Objective(self._model, observations, coefficients, self._plan)

        def gradients(parameters: list[Tensor]) -> Sequence[Tensor]:
            leaves = [parameter.detach().requires_grad_() for parameter in parameters]
            with torch.enable_grad():
                loss = with_parameters(
                    self._model,
                    [leaves[position] for position in self._positions],
                    lambda: objective.whole_loss(slot, batch),
                )
                return torch.autograd.grad(loss, leaves)

        previous = slot._replace(active=arguments.was_active)
        norms = self._optimizer.traced_step(
            arguments.state,
            gradients,
            lr=coefficients.lr,
            max_grad_norm=coefficients.max_grad_norm,
            active=lambda: stop_far_lanes(slot, previous, coefficients.target_kl),
        )
        slot.grad_norms.add_(norms)
        return [norms]

    def _take_apart(self, tensors: Sequence[Tensor]) -> _StepArguments:
        rest = iter(tensors)
        state = [next(rest) for _ in self._state]
        rows = RolloutRows(*(next(rest) for _ in RolloutRows._fields))
        low, high = next(rest), next(rest)
        others = {
            name: next(rest) if is_present else None
            for name, is_present in zip(_COEFFICIENTS, self._options, strict=True)
        }
        coefficients = Coefficients(clip=ClipRange(low, high), **others)  # type: ignore[arg-type]
        index = next(rest)
        slot = StepSlot(*(next(rest) for _ in StepSlot._fields))
        return _StepArguments(state, rows, coefficients, index, slot, next(rest))


_COEFFICIENTS = [name for name in Coefficients._fields if name != "clip"]


def _options(coefficients: Coefficients) -> tuple[bool, ...]:
    return tuple(getattr(coefficients, name) is not None for name in _COEFFICIENTS)


def _present(coefficients: Coefficients) -> list[Tensor]:
    others = (getattr(coefficients, name) for name in _COEFFICIENTS)
    return [*coefficients.clip, *(value for value in others if value is not None)]


def _moving(log: StepLog, indices: Sequence[Tensor], step: int) -> list[Tensor]:
    """Return what changes from one gradient step to the next."""
    before = log.steps[step - 1].active if step else torch.ones_like(log.steps[0].active)
    return [indices[step], *log.steps[step], before]
