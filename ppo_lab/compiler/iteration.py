"""The functions of an iteration that are compiled: the same arithmetic as without compilation.

Each is traced from the functions that run uncompiled, with the model's parameters as its state, so
one program serves all later iterations and every config that replaces a lane's. Environments that
are stepped one call at a time have one program for policy and sampling instead of a block of steps,
and one for running statistics where observations or rewards are normalized.

Shapes: T = steps per rollout, U = steps in a block, L = lanes, N = environments per lane,
O = observation size, R = T * N rows per lane of a rollout, E = epochs, M = minibatches per epoch,
B = rows per lane in a minibatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppo_lab.compiler.compiled import CompiledFunction, CompileSpec
from ppo_lab.envs.base import Step
from ppo_lab.envs.native import NativeEnv
from ppo_lab.envs.running_stats import Normalizer
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.adam import LaneAdam
from ppo_lab.ppo.collector import Act, RolloutColumns
from ppo_lab.ppo.diagnostics import UpdateDiagnostics, UpdateLog, UpdateStep, apply_target_kl
from ppo_lab.ppo.rollout import Batch, RolloutRows
from ppo_lab.ppo.update import LaneHyperparameters, UpdateLoss, UpdatePlan

__all__ = [
    "RolloutBlock",
    "UpdateSteps",
    "act_spec",
    "advance_spec",
    "compiled_act",
    "compiled_advance",
    "model_spec",
]

_MAX_UNROLLED_STEPS = 4
"""Steps unrolled into one library: more hardly run faster, and compile longer."""


class _WithModel(nn.Module):
    """Runs a function while a model's parameters are replaced by others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it returns
        return function()


def with_parameters(
    model: nn.Module, replacements: Mapping[nn.Parameter, Tensor], function: Callable[[], Any]
) -> Any:  # noqa: ANN401 - whatever ``function`` returns
    """Return what ``function`` returns while the model's parameters are replaced."""
    replaced = {f"model.{name}": replacements[p] for name, p in model.named_parameters()}
    # A shared trunk is one module under two names. Tying its weights would swap them twice, and
    # leave the second name's replacement behind.
    return torch.func.functional_call(_WithModel(model), replaced, (function,), tie_weights=False)


def model_spec(
    name: str,
    model: ActorCritic,
    function: Callable[..., Any],
    *args: Any,  # noqa: ANN401
) -> CompileSpec:
    """Return the spec of ``function(*args)``, which runs ``model``."""
    parameters = list(model.parameters())

    def with_state(state: Sequence[Tensor], *args: Any) -> Any:  # noqa: ANN401
        replacements = dict(zip(parameters, state, strict=True))
        return with_parameters(model, replacements, lambda: function(*args))

    return CompileSpec(name, with_state, args, [parameter.detach() for parameter in parameters])


def act_spec(model: ActorCritic, act: Act, observations: Tensor, noise: Tensor) -> CompileSpec:
    """Return the spec of ``act`` for observations (L, N, O) and the noise (L, N, …) of a step."""
    return model_spec("act", model, act, observations.contiguous(), noise.contiguous())


def compiled_act(function: CompiledFunction, observations: Tensor, noise: Tensor) -> Any:  # noqa: ANN401
    """Call the function of ``act_spec`` with tensors of any strides; see ``Act``."""
    return function(observations.contiguous(), noise.contiguous())


def advance_spec(normalizer: Normalizer, observations: Tensor, rewards: Tensor) -> CompileSpec:
    """Return the spec of ``Normalizer.advance``, for observations (L, N, O) and rewards (L, N)."""
    moments = normalizer.observations
    observation_size = 0 if moments is None else moments.mean.shape[-1]

    def advance(state: Sequence[Tensor], *step: Tensor) -> list[Tensor]:
        observations, rewards, terminated, truncated = step
        copy = Normalizer(state, observation_size)
        results = copy.advance(observations, rewards, terminated | truncated)
        return [result.clone() for result in results]  # what is not normalized is an argument

    never = torch.zeros_like(rewards, dtype=torch.bool)
    args = (observations.contiguous(), rewards.contiguous(), never, never)
    return CompileSpec("advance", advance, args, state=normalizer.tensors)


def compiled_advance(function: CompiledFunction, step: Step) -> Any:  # noqa: ANN401
    """Call the function of ``advance_spec`` with a step of any strides; see ``Advance``."""
    observations, rewards = step.observations.contiguous(), step.rewards.contiguous()
    return function(observations, rewards, step.terminated, step.truncated)


class RolloutBlock:
    """U steps of a native environment."""

    def __init__(self, env: NativeEnv, act: Act, num_steps: int, *, is_unrolled: bool) -> None:
        """Cut rollouts of ``num_steps`` into equal blocks, short ones for a library."""
        self._env, self._act = env, act
        most = min(_MAX_UNROLLED_STEPS, env.max_block_steps) if is_unrolled else env.max_block_steps
        self._num_steps = max(size for size in range(1, most + 1) if num_steps % size == 0)

    def spec(self, model: ActorCritic, noise: Tensor) -> CompileSpec:
        """Return the spec of one block; ``noise`` (L, T, N, …) is that of a rollout."""
        begin = self._env.begin_block(self._num_steps)
        return model_spec("steps", model, self._take_steps, begin, noise[:, : self._num_steps])

    def _take_steps(
        self, begin: list[Tensor], noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, RolloutColumns]:
        """Return state, deadlines, next observations and the columns (L, U, N, …) of a block."""
        state, deadlines, clock, starts, first_observations = begin
        observations = self._env.observe(state)
        steps: list[RolloutColumns] = []
        for index in range(self._num_steps):
            policy_parameters, actions = self._act(observations, noise[:, index])
            start = starts[index], first_observations[index]
            now = clock + (index + 1)
            state, deadlines, step = self._env.advance(state, deadlines, now, start, actions)
            steps.append(RolloutColumns(observations, policy_parameters, actions, *step[1:]))
            observations = step.observations
        columns = RolloutColumns(*(torch.stack(column, 1) for column in zip(*steps)))
        return state, deadlines, observations.clone(), columns

    def rollout(self, function: CompiledFunction, noise: Tensor) -> tuple[Tensor, RolloutColumns]:
        """Take the T steps of a rollout with the function of ``spec``; see ``Steps``."""
        blocks: list[RolloutColumns] = []
        for part in noise.split(self._num_steps, 1):
            begin = self._env.begin_block(self._num_steps)
            state, deadlines, observations, columns = function(begin, part)
            self._env.end_block(self._num_steps, state, deadlines)
            blocks.append(columns)
        whole = [parts[0] if len(parts) == 1 else torch.cat(parts, 1) for parts in zip(*blocks)]
        return observations, RolloutColumns(*(column.transpose(0, 1) for column in whole))


@dataclass(frozen=True)
class UpdateSteps:
    """``ppo_lab.ppo.update.update`` with a compiled gradient step, or compiled as a whole."""

    model: ActorCritic
    optimizer: LaneAdam
    """Holds all parameters of ``model``."""
    plan: UpdatePlan
    is_whole: bool
    """Whether all gradient steps of an update are one program. That is for CUDA graphs: a long one
    is launched as fast as a short one."""

    def spec(
        self, rows: RolloutRows, permutations: Tensor, hyperparameters: LaneHyperparameters
    ) -> CompileSpec:
        """Return the spec of one gradient step of such an update, or of all of it."""
        args: tuple[Any, ...] = rows, permutations, hyperparameters
        state = self.optimizer.state_tensors
        if self.is_whole:

            def update(state: Sequence[Tensor], *args: Any) -> UpdateDiagnostics:  # noqa: ANN401
                return self._update(partial(partial, self._take_step, state), *args)

            return CompileSpec("update", update, args, state)
        step = next(self._steps(self._new_log(rows, permutations), permutations))
        args = self._prepare(rows), hyperparameters, *step
        return CompileSpec("gradient_step", self._take_step, args, state)

    def update(self, function: CompiledFunction) -> Callable[..., UpdateDiagnostics]:
        """Return the update that calls the compiled function of ``spec``."""
        return function if self.is_whole else partial(self._update, function.bind)

    def _update(
        self,
        bind: Callable[..., Callable[..., Tensor]],
        rows: RolloutRows,
        permutations: Tensor,
        hyperparameters: LaneHyperparameters,
    ) -> UpdateDiagnostics:
        """Take every gradient step of an update; ``bind`` fixes the first arguments of one."""
        log = self._new_log(rows, permutations)
        take_step = bind(self._prepare(rows), hyperparameters)
        for step in self._steps(log, permutations):
            take_step(*step)
        return log.means(hyperparameters.clip)

    def _new_log(self, rows: RolloutRows, permutations: Tensor) -> UpdateLog:
        num_minibatches, num_groups = self.plan.num_minibatches, self.optimizer.num_clip_groups
        return UpdateLog.of(rows, permutations, num_minibatches, num_groups)

    def _prepare(self, rows: RolloutRows) -> RolloutRows:
        """Return the rows of all lanes, one after the other: (L * R, …)."""
        return self.plan.prepare(rows).map(lambda column: column.flatten(0, 1).contiguous())

    def _steps(
        self, log: UpdateLog, permutations: Tensor
    ) -> Iterator[tuple[Tensor, UpdateStep, Tensor]]:
        """Yield each gradient step's rows (L, B), its log, and the lanes active before it (L,)."""
        num_lanes, num_rows = permutations.shape[1:]
        first_row = torch.arange(num_lanes, device=permutations.device).unsqueeze(-1) * num_rows
        parts = (permutations + first_row).unflatten(-1, (self.plan.num_minibatches, -1))
        indices = parts.transpose(1, 2).flatten(0, 1).contiguous().unbind(0)
        was_active = torch.ones_like(log.steps[0].active)
        for index, step in zip(indices, log.steps, strict=True):
            yield index, step, was_active
            was_active = step.active

    def _take_step(
        self,
        state: Sequence[Tensor],
        rows: RolloutRows,
        hyperparameters: LaneHyperparameters,
        index: Tensor,
        step: UpdateStep,
        was_active: Tensor,
    ) -> Tensor:
        """Take one gradient step, in place."""
        chosen = index.flatten()
        of_step = rows.map(lambda c: c.index_select(0, chosen).unflatten(0, index.shape))
        batch = self.plan.scale(Batch(index, *of_step[1:]), step)
        observations = rows.observations.unsqueeze(0)  # as one long lane, for ``index``
        loss = UpdateLoss(self.model, observations, hyperparameters, self.plan)
        optimizer = self.optimizer
        own_state, optimizer.state_tensors = optimizer.state_tensors, state
        try:
            leaves = [weights.detach().requires_grad_() for weights in optimizer.split_weights()]
            replacements = dict(zip(optimizer.parameters, leaves, strict=True))
            with torch.enable_grad():
                total = with_parameters(self.model, replacements, lambda: loss(batch, step).sum())
                gradients = torch.autograd.grad(total, leaves)
            for parameter, gradient in zip(optimizer.parameters, gradients):
                parameter.grad = gradient
            previous = step._replace(active=was_active)
            norms = optimizer.step(
                lr=hyperparameters.lr,
                max_grad_norm=hyperparameters.max_grad_norm,
                active=apply_target_kl(step, previous, hyperparameters.target_kl),
            )
        finally:
            optimizer.state_tensors = own_state
            optimizer.zero_grad()
        step.grad_norms.add_(norms)
        return norms
