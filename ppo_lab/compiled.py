"""An iteration's parts as compiled programs: the same arithmetic without Python between operations.

Four programs do nearly all of an iteration: a block of rollout steps (policy, sampling,
environment), what the critic says of the rollout, one gradient step, and the diagnostics. Each is
traced from the very functions that run without compilation, with the model's parameters among its
arguments, so a program serves every later iteration and every lane that takes another's place.
Environments that are stepped one call at a time get one program for policy and sampling instead of
the block.

Shapes: T = steps per rollout, U = steps in a block, L = lanes, N = environments per lane,
O = observation size, P = policy parameters per row, R = T * N, K = gradient steps of an update,
B = rows per lane in a minibatch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppo_lab.after_update import AfterUpdate
from ppo_lab.collect import Act, Columns, Critique
from ppo_lab.envs.native import NativeEnv
from ppo_lab.networks import ActorCritic
from ppo_lab.optimizer import LaneAdam
from ppo_lab.ppo import ClipRange, normalize_advantages
from ppo_lab.programs import Program, ProgramSource
from ppo_lab.rollout import Batch, RolloutRows
from ppo_lab.step_log import StepLog, StepSlot, UpdateDiagnostics, stop_far_lanes
from ppo_lab.update import AdvantageNormalization, Coefficients, Objective, UpdatePlan

__all__ = [
    "CompiledAct",
    "CompiledAfterUpdate",
    "CompiledCritique",
    "CompiledSteps",
    "CompiledUpdate",
]

_MAX_BLOCK_STEPS = 4
"""Steps unrolled into one program: more hardly run faster, and compile longer."""


class _Borrowed(nn.Module):
    """Runs a function while a model's parameters are replaced by others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it returns
        return function()


def _with_parameters(
    model: nn.Module, parameters: Sequence[Tensor], function: Callable[[], Any]
) -> Any:  # noqa: ANN401 - whatever ``function`` returns
    """Return what ``function`` returns while ``parameters``, in their order, are the model's."""
    names = [f"model.{name}" for name, _ in model.named_parameters()]
    replaced = dict(zip(names, parameters, strict=True))
    return torch.func.functional_call(_Borrowed(model), replaced, (function,))


def _block_steps(num_steps: int, env: NativeEnv) -> int:
    """Return U: the largest divisor of ``num_steps`` that a block may have."""
    most = min(_MAX_BLOCK_STEPS, env.max_block_steps)
    return max(size for size in range(1, most + 1) if num_steps % size == 0)


class CompiledSteps:
    """Takes the steps of a rollout in a native environment, a block at a time."""

    def __init__(self, model: ActorCritic, env: NativeEnv, num_steps: int) -> None:
        """Step ``env``; rollouts have ``num_steps``."""
        self._model, self._env = model, env
        self._num_steps, self._block = num_steps, _block_steps(num_steps, env)
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self.program: Program | None = None

    def source(self, noise: Tensor) -> ProgramSource:
        """Return the program of one block; ``noise`` (L, T, N, …) is of a rollout."""
        return ProgramSource("steps", self._trace, self._arguments(noise[:, : self._block]))

    def _arguments(self, noise: Tensor) -> list[Tensor]:
        return [*self._env.begin_block(self._block), noise, *self._parameters]

    def _trace(
        self,
        state: Tensor,
        deadlines: Tensor,
        clock: Tensor,
        starts: Tensor,
        first_observations: Tensor,
        noise: Tensor,
        *parameters: Tensor,
    ) -> list[Tensor]:
        """Return state, deadlines and the columns (L, U, N, …) of a block."""
        observations = self._env.observe(state)
        columns: list[Columns] = []

        def policy() -> Tensor:
            return self._model.policy(observations)

        for index in range(self._block):
            policy_parameters = _with_parameters(self._model, parameters, policy)
            actions = self._model.distribution.sample(policy_parameters, noise[:, index])
            start = starts[index], first_observations[index]
            state, deadlines, step = self._env.advance(
                state, deadlines, clock + (index + 1), start, actions
            )
            columns.append(Columns.of(observations, policy_parameters, actions, step))
            observations = step.observations
        stacked = [torch.stack(column, 1) for column in zip(*columns)]
        return [state, deadlines, observations.clone(), *stacked]

    def __call__(self, noise: Tensor) -> tuple[Tensor, Columns]:
        """Take T steps; ``noise`` (L, T, N, …) decides every action.

        Returns:
            The observations to act on next, (L, N, O), and the columns (T, L, N, …).
        """
        assert self.program is not None
        blocks: list[list[Tensor]] = []
        for part in noise.split(self._block, 1):
            state, deadlines, observations, *columns = self.program(self._arguments(part))
            self._env.end_block(self._block, state, deadlines)
            blocks.append(columns)
        columns = [torch.cat(parts, 1).transpose(0, 1) for parts in zip(*blocks)]
        return observations, Columns(*columns)


class CompiledAct:
    """The policy and its sampling, for environments that are stepped one call at a time."""

    def __init__(self, model: ActorCritic, act: Act) -> None:
        """Compile ``act``, which runs ``model``."""
        self._model, self._act = model, act
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self.program: Program | None = None

    def source(self, observations: Tensor, noise: Tensor) -> ProgramSource:
        """Return the program, for observations (L, N, O) and the noise (L, N, …) of a step."""
        return ProgramSource("act", self._trace, self._arguments(observations, noise))

    def _arguments(self, observations: Tensor, noise: Tensor) -> list[Tensor]:
        # An environment returns whatever strides it has.
        return [observations.contiguous(), noise.contiguous(), *self._parameters]

    def _trace(self, observations: Tensor, noise: Tensor, *parameters: Tensor) -> list[Tensor]:
        return list(
            _with_parameters(self._model, parameters, lambda: self._act(observations, noise))
        )

    def __call__(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return policy parameters and actions."""
        assert self.program is not None
        policy_parameters, actions = self.program(self._arguments(observations, noise))
        return policy_parameters, actions


class CompiledCritique:
    """Log probabilities and values of a whole rollout."""

    def __init__(self, model: ActorCritic, critique: Callable[[Columns], Critique]) -> None:
        """Compile ``critique``, which runs ``model``."""
        self._model, self._critique = model, critique
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self.program: Program | None = None

    def source(self, columns: Columns) -> ProgramSource:
        """Return the program, for columns like ``columns``."""
        return ProgramSource("critique", self._trace, [*columns, *self._parameters])

    def _trace(self, *tensors: Tensor) -> list[Tensor]:
        num_columns = len(Columns._fields)
        columns, parameters = Columns(*tensors[:num_columns]), tensors[num_columns:]
        return list(_with_parameters(self._model, parameters, lambda: self._critique(columns)))

    def __call__(self, columns: Columns) -> Critique:
        """Return what ``critique`` returns."""
        assert self.program is not None
        return Critique(*self.program([*columns, *self._parameters]))


class CompiledAfterUpdate:
    """The diagnostics of the whole rollout."""

    def __init__(
        self, model: ActorCritic, function: Callable[[RolloutRows, ClipRange], AfterUpdate]
    ) -> None:
        """Compile ``function``, which runs ``model``."""
        self._model, self._function = model, function
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self.program: Program | None = None

    def source(self, rows: RolloutRows, clip: ClipRange) -> ProgramSource:
        """Return the program, for rows like ``rows``."""
        return ProgramSource("after_update", self._trace, [*rows, *clip, *self._parameters])

    def _trace(self, *tensors: Tensor) -> list[Tensor]:
        num_rows = len(RolloutRows._fields)
        rows, clip = RolloutRows(*tensors[:num_rows]), ClipRange(*tensors[num_rows : num_rows + 2])
        parameters = tensors[num_rows + 2 :]
        result: AfterUpdate = _with_parameters(
            self._model, parameters, lambda: self._function(rows, clip)
        )
        return result.flat()

    def __call__(self, rows: RolloutRows, clip: ClipRange) -> AfterUpdate:
        """Return what ``function`` returns."""
        assert self.program is not None
        return AfterUpdate.of(self.program([*rows, *clip, *self._parameters]))


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
                loss = _with_parameters(
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
