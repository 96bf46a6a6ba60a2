"""A gradient step as a compiled program, or all of an update's.

Shapes: L = lanes, R = rows per lane of a rollout, E = epochs, M = minibatches per epoch,
B = rows per lane in a minibatch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.compiler.program_cache import ProgramSource, Run
from ppo_lab.compiler.rollout_programs import with_parameters
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.adam import LaneAdam
from ppo_lab.ppo.diagnostics import UpdateDiagnostics, UpdateLog, UpdateStep, apply_target_kl
from ppo_lab.ppo.losses import ClipRange, normalize_advantages
from ppo_lab.ppo.rollout import Batch, RolloutRows
from ppo_lab.ppo.update import AdvantageNormalization, LaneHyperparameters, UpdateLoss, UpdatePlan

__all__ = ["CompiledUpdate", "WholeUpdate"]


class _Fixed(NamedTuple):
    """What all gradient steps of an update take, apart; see ``CompiledUpdate``."""

    state: Sequence[Tensor]
    rows: RolloutRows  # (L * R, …), through all lanes; (L, R, …) before a whole update
    coefficients: LaneHyperparameters

    def flat(self) -> list[Tensor]:
        """Return all tensors in order."""
        return [*self.state, *self.rows, *_present(self.coefficients)]


class CompiledUpdate:
    """``ppo_lab.ppo.update.update`` with one program per gradient step."""

    def __init__(self, model: ActorCritic, optimizer: LaneAdam, plan: UpdatePlan) -> None:
        """Step ``optimizer``, which holds all parameters of ``model``, as ``plan`` says."""
        self._model, self._optimizer, self._plan = model, optimizer, plan
        self._state = optimizer.state_tensors
        positions = {id(p): position for position, p in enumerate(optimizer.parameters)}
        self._positions = [positions[id(parameter)] for parameter in model.parameters()]
        self._options: tuple[bool, ...] = ()
        self.program: Run | None = None

    def source(
        self, rows: RolloutRows, permutations: Tensor, coefficients: LaneHyperparameters
    ) -> ProgramSource:
        """Return the program of one gradient step of such an update."""
        self._options = _options(coefficients)
        fixed = self._fixed(self._state, rows, coefficients)
        log, indices = self._log(rows, permutations), self._indices(permutations)
        arguments = [*fixed, *_moving(log, indices, 0)]
        return ProgramSource("gradient_step", self._trace, arguments, kept=self._state)

    def fits(self, coefficients: LaneHyperparameters) -> bool:
        """Return whether the program was made for lanes that use such options."""
        return self._options == _options(coefficients)

    def __call__(
        self, rows: RolloutRows, permutations: Tensor, coefficients: LaneHyperparameters
    ) -> UpdateDiagnostics:
        """Pass over ``rows`` once per order in ``permutations`` (E, L, R)."""
        assert self.program is not None
        return self._steps(self.program, _Fixed(self._state, rows, coefficients), permutations)

    def _steps(self, step: Run, given: _Fixed, permutations: Tensor) -> UpdateDiagnostics:
        """Take every ``step`` of an update."""
        fixed = self._fixed(*given)
        log, indices = self._log(given.rows, permutations), self._indices(permutations)
        for number in range(len(indices)):
            step([*fixed, *_moving(log, indices, number)])
        return log.means(given.coefficients.clip, self._plan.num_minibatches)

    def _log(self, rows: RolloutRows, permutations: Tensor) -> UpdateLog:
        num_epochs, num_lanes, num_rows = permutations.shape
        return UpdateLog(
            num_epochs * self._plan.num_minibatches,
            num_lanes,
            num_rows // self._plan.num_minibatches,
            self._optimizer.num_clip_groups,
            like=rows.advantages,
        )

    def _indices(self, permutations: Tensor) -> tuple[Tensor, ...]:
        """Return the rows of each gradient step (L, B), counted through all lanes."""
        num_lanes, num_rows = permutations.shape[1:]
        first_row = torch.arange(num_lanes, device=permutations.device).unsqueeze(-1) * num_rows
        parts = (permutations + first_row).unflatten(-1, (self._plan.num_minibatches, -1))
        return parts.transpose(1, 2).flatten(0, 1).contiguous().unbind(0)

    def _fixed(
        self, state: Sequence[Tensor], rows: RolloutRows, coefficients: LaneHyperparameters
    ) -> list[Tensor]:
        """Return what is the same for all gradient steps of an update."""
        if self._plan.normalization is AdvantageNormalization.rollout:
            rows = rows._replace(advantages=normalize_advantages(rows.advantages))
        columns = (column.flatten(0, 1).contiguous() for column in rows)
        return _Fixed(state, RolloutRows(*columns), coefficients).flat()

    def _trace(self, *tensors: Tensor) -> list[Tensor]:
        """Take one gradient step, in place."""
        rest = iter(tensors)
        state, flat, coefficients = self._take_fixed(rest)
        index = next(rest)  # (L, B)
        slot = UpdateStep(*(next(rest) for _ in UpdateStep._fields))
        was_active = next(rest)  # (L,)

        chosen = index.flatten()
        columns = (c.index_select(0, chosen).unflatten(0, index.shape) for c in flat[1:])
        batch = Batch(index, *columns)
        observations = flat.observations.unsqueeze(0)  # as one long lane: ``index`` counts through
        objective = UpdateLoss(self._model, observations, coefficients, self._plan)

        def gradients(parameters: list[Tensor]) -> Sequence[Tensor]:
            leaves = [parameter.detach().requires_grad_() for parameter in parameters]
            with torch.enable_grad():
                loss = with_parameters(
                    self._model,
                    [leaves[position] for position in self._positions],
                    lambda: objective.whole_loss(slot, batch),
                )
                return torch.autograd.grad(loss, leaves)

        previous = slot._replace(active=was_active)
        norms = self._optimizer.traced_step(
            state,
            gradients,
            lr=coefficients.lr,
            max_grad_norm=coefficients.max_grad_norm,
            active=lambda: apply_target_kl(slot, previous, coefficients.target_kl),
        )
        slot.grad_norms.add_(norms)
        return [norms]

    def _take_fixed(self, rest: Iterator[Tensor]) -> _Fixed:
        """Take what ``_Fixed.flat`` returned off ``rest``."""
        state = [next(rest) for _ in self._state]
        rows = RolloutRows(*(next(rest) for _ in RolloutRows._fields))
        low, high = next(rest), next(rest)
        others = {
            name: next(rest) if is_present else None
            for name, is_present in zip(_COEFFICIENTS, self._options, strict=True)
        }
        coefficients = LaneHyperparameters(clip=ClipRange(low, high), **others)  # type: ignore[arg-type]
        return _Fixed(state, rows, coefficients)


class WholeUpdate(CompiledUpdate):
    """The same with one program for all gradient steps and their summary.

    For programs that are recorded: there a long one is launched as fast as a short one.
    """

    def source(
        self, rows: RolloutRows, permutations: Tensor, coefficients: LaneHyperparameters
    ) -> ProgramSource:
        """Return the program of such an update."""
        self._options = _options(coefficients)
        arguments = [*_Fixed(self._state, rows, coefficients).flat(), permutations]
        return ProgramSource("update", self._trace_all, arguments, kept=self._state)

    def __call__(
        self, rows: RolloutRows, permutations: Tensor, coefficients: LaneHyperparameters
    ) -> UpdateDiagnostics:
        """See ``CompiledUpdate``."""
        assert self.program is not None
        arguments = [*_Fixed(self._state, rows, coefficients).flat(), permutations]
        return UpdateDiagnostics.of(self.program(arguments))

    def _trace_all(self, *tensors: Tensor) -> list[Tensor]:
        """Take all gradient steps, in place, and return what they came to."""
        rest = iter(tensors)
        given = self._take_fixed(rest)
        return self._steps(lambda step: self._trace(*step), given, next(rest)).flat()


_COEFFICIENTS = [name for name in LaneHyperparameters._fields if name != "clip"]


def _options(coefficients: LaneHyperparameters) -> tuple[bool, ...]:
    return tuple(getattr(coefficients, name) is not None for name in _COEFFICIENTS)


def _present(coefficients: LaneHyperparameters) -> list[Tensor]:
    others = (getattr(coefficients, name) for name in _COEFFICIENTS)
    return [*coefficients.clip, *(value for value in others if value is not None)]


def _moving(log: UpdateLog, indices: Sequence[Tensor], step: int) -> list[Tensor]:
    """Return what changes from one gradient step to the next."""
    before = log.steps[step - 1].active if step else torch.ones_like(log.steps[0].active)
    return [indices[step], *log.steps[step], before]
