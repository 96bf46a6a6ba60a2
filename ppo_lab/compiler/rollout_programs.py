"""An iteration's parts as compiled programs: the same arithmetic without Python between operations.

Four programs do nearly all of an iteration: a block of rollout steps (policy, sampling,
environment), what the critic says of the rollout, one gradient step, and the diagnostics. Each is
traced from the very functions that run without compilation, with the model's parameters among its
arguments, so a program serves every later iteration and every lane that takes another's place.
Environments that are stepped one call at a time get one program for policy and sampling instead of
the block, and one for running statistics and their use where numbers are normalised.

Shapes: T = steps per rollout, U = steps in a block, L = lanes, N = environments per lane,
O = observation size, P = policy parameters per row, R = T * N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppo_lab.compiler.program_cache import ProgramSource, Run
from ppo_lab.envs.base import Step
from ppo_lab.envs.native import NativeEnv
from ppo_lab.envs.running_stats import Normalizer
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.after_update import RolloutDiagnostics
from ppo_lab.ppo.collector import Act, RolloutColumns, RolloutValues
from ppo_lab.ppo.losses import ClipRange
from ppo_lab.ppo.rollout import RolloutRows

__all__ = [
    "MAX_BLOCK_STEPS",
    "CompiledAct",
    "CompiledAdvance",
    "CompiledAfterUpdate",
    "CompiledRolloutValues",
    "CompiledSteps",
    "with_parameters",
]

MAX_BLOCK_STEPS = 4
"""Steps unrolled into one library: more hardly run faster, and compile longer."""


class _Borrowed(nn.Module):
    """Runs a function while a model's parameters are replaced by others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it returns
        return function()


def with_parameters(
    model: nn.Module, parameters: Sequence[Tensor], function: Callable[[], Any]
) -> Any:  # noqa: ANN401 - whatever ``function`` returns
    """Return what ``function`` returns while ``parameters``, in their order, are the model's."""
    names = [f"model.{name}" for name, _ in model.named_parameters()]
    replaced = dict(zip(names, parameters, strict=True))
    # A shared trunk is one module under two names. Tying its weights would swap them twice, and
    # leave the second name's replacement behind.
    return torch.func.functional_call(_Borrowed(model), replaced, (function,), tie_weights=False)


def _block_steps(num_steps: int, most: int) -> int:
    """Return U: the largest divisor of ``num_steps`` that is not above ``most``."""
    return max(size for size in range(1, most + 1) if num_steps % size == 0)


class CompiledSteps:
    """Takes the steps of a rollout in a native environment, a block at a time."""

    def __init__(
        self, model: ActorCritic, env: NativeEnv, num_steps: int, max_block_steps: int
    ) -> None:
        """Step ``env``; rollouts have ``num_steps``, a program at most ``max_block_steps``."""
        self._model, self._env = model, env
        self._block = _block_steps(num_steps, min(max_block_steps, env.max_block_steps))
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self.program: Run | None = None

    def source(self, noise: Tensor) -> ProgramSource:
        """Return the program of one block; ``noise`` (L, T, N, …) is of a rollout."""
        arguments = self._arguments(noise[:, : self._block])
        return ProgramSource("steps", self._trace, arguments, kept=self._parameters)

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
        columns: list[RolloutColumns] = []

        def policy() -> Tensor:
            return self._model.policy(observations)

        for index in range(self._block):
            policy_parameters = with_parameters(self._model, parameters, policy)
            actions = self._model.distribution.sample(policy_parameters, noise[:, index])
            start = starts[index], first_observations[index]
            state, deadlines, step = self._env.advance(
                state, deadlines, clock + (index + 1), start, actions
            )
            columns.append(RolloutColumns.of(observations, policy_parameters, actions, step))
            observations = step.observations
        stacked = [torch.stack(column, 1) for column in zip(*columns)]
        return [state, deadlines, observations.clone(), *stacked]

    def __call__(self, noise: Tensor) -> tuple[Tensor, RolloutColumns]:
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
        whole = [parts[0] if len(parts) == 1 else torch.cat(parts, 1) for parts in zip(*blocks)]
        return observations, RolloutColumns(*(column.transpose(0, 1) for column in whole))


class CompiledAct:
    """The policy and its sampling, for environments that are stepped one call at a time."""

    def __init__(self, model: ActorCritic, act: Act) -> None:
        """Compile ``act``, which runs ``model``."""
        self._model, self._act = model, act
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self.program: Run | None = None

    def source(self, observations: Tensor, noise: Tensor) -> ProgramSource:
        """Return the program, for observations (L, N, O) and the noise (L, N, …) of a step."""
        arguments = self._arguments(observations, noise)
        return ProgramSource("act", self._trace, arguments, kept=self._parameters)

    def _arguments(self, observations: Tensor, noise: Tensor) -> list[Tensor]:
        # An environment returns whatever strides it has.
        return [observations.contiguous(), noise.contiguous(), *self._parameters]

    def _trace(self, observations: Tensor, noise: Tensor, *parameters: Tensor) -> list[Tensor]:
        return list(
            with_parameters(self._model, parameters, lambda: self._act(observations, noise))
        )

    def __call__(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return policy parameters and actions."""
        assert self.program is not None
        policy_parameters, actions = self.program(self._arguments(observations, noise))
        return policy_parameters, actions


class CompiledAdvance:
    """The statistics of a normalised environment, and a step seen through them."""

    def __init__(self, normalizer: Normalizer) -> None:
        """Advance ``normalizer``, in place."""
        self._state = normalizer.tensors
        moments = normalizer.observations
        self._observation_size = 0 if moments is None else moments.mean.shape[-1]
        self.program: Run | None = None

    def source(self, observations: Tensor, rewards: Tensor) -> ProgramSource:
        """Return the program, for steps with such observations (L, N, O) and rewards (L, N)."""
        never = torch.zeros_like(rewards, dtype=torch.bool)
        step = Step(observations, rewards, rewards, never, never, observations)
        return ProgramSource("advance", self._trace, self._arguments(step), kept=self._state)

    def _arguments(self, step: Step) -> list[Tensor]:
        # An environment returns whatever strides it has.
        observations, rewards = step.observations.contiguous(), step.rewards.contiguous()
        return [*self._state, observations, rewards, step.terminated, step.truncated]

    def _trace(self, *tensors: Tensor) -> list[Tensor]:
        *state, observations, rewards, terminated, truncated = tensors
        normalizer = Normalizer(state, self._observation_size)
        results = normalizer.advance(observations, rewards, terminated | truncated)
        return [result.clone() for result in results]  # what is left as it is, is an argument

    def __call__(self, step: Step) -> tuple[Tensor, Tensor]:
        """Count ``step``; return its observations and rewards normalised."""
        assert self.program is not None
        observations, rewards = self.program(self._arguments(step))
        return observations, rewards


class CompiledRolloutValues:
    """Log probabilities and values of a whole rollout."""

    def __init__(
        self, model: ActorCritic, critique: Callable[[RolloutColumns], RolloutValues]
    ) -> None:
        """Compile ``critique``, which runs ``model``."""
        self._model, self._critique = model, critique
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self.program: Run | None = None

    def source(self, columns: RolloutColumns) -> ProgramSource:
        """Return the program, for columns like ``columns``."""
        arguments = [*columns, *self._parameters]
        return ProgramSource("critique", self._trace, arguments, kept=self._parameters)

    def _trace(self, *tensors: Tensor) -> list[Tensor]:
        num_columns = len(RolloutColumns._fields)
        columns, parameters = RolloutColumns(*tensors[:num_columns]), tensors[num_columns:]
        return list(with_parameters(self._model, parameters, lambda: self._critique(columns)))

    def __call__(self, columns: RolloutColumns) -> RolloutValues:
        """Return what ``critique`` returns."""
        assert self.program is not None
        return RolloutValues(*self.program([*columns, *self._parameters]))


class CompiledAfterUpdate:
    """The diagnostics of the whole rollout."""

    def __init__(
        self, model: ActorCritic, function: Callable[[RolloutRows, ClipRange], RolloutDiagnostics]
    ) -> None:
        """Compile ``function``, which runs ``model``."""
        self._model, self._function = model, function
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self.program: Run | None = None

    def source(self, rows: RolloutRows, clip: ClipRange) -> ProgramSource:
        """Return the program, for rows like ``rows``."""
        arguments = [*rows, *clip, *self._parameters]
        return ProgramSource("after_update", self._trace, arguments, kept=self._parameters)

    def _trace(self, *tensors: Tensor) -> list[Tensor]:
        num_rows = len(RolloutRows._fields)
        rows, clip = RolloutRows(*tensors[:num_rows]), ClipRange(*tensors[num_rows : num_rows + 2])
        parameters = tensors[num_rows + 2 :]
        result: RolloutDiagnostics = with_parameters(
            self._model, parameters, lambda: self._function(rows, clip)
        )
        return result.flat()

    def __call__(self, rows: RolloutRows, clip: ClipRange) -> RolloutDiagnostics:
        """Return what ``function`` returns."""
        assert self.program is not None
        return RolloutDiagnostics.of(self.program([*rows, *clip, *self._parameters]))
