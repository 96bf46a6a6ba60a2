"""Whether a trainer's iterations are compiled, and the compiled functions that replace its own.

The first iteration always runs uncompiled: it yields example tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ppo_lab.compiler.compiled import CompiledFunction, CompilerError, CompileSpec, structure_of
from ppo_lab.compiler.cuda_graphs import CudaGraphCapturer, GraphCapturer, capture_function
from ppo_lab.compiler.iteration import (
    RolloutBlock,
    UpdateSteps,
    act_spec,
    advance_spec,
    compiled_act,
    compiled_advance,
    model_spec,
)
from ppo_lab.compiler.program_cache import ProgramCache
from ppo_lab.config.choices import Compile
from ppo_lab.config.lanes import stack_values
from ppo_lab.config.run import Config
from ppo_lab.config.settings import ABOUT_A_RUN
from ppo_lab.envs.native import NativeEnv
from ppo_lab.envs.normalized import NormalizedEnv
from ppo_lab.ppo.adam import LaneAdam, LaneOptimizer
from ppo_lab.ppo.after_update import RolloutDiagnostics, after_update
from ppo_lab.ppo.collector import Collector, RolloutColumns
from ppo_lab.ppo.diagnostics import UpdateDiagnostics
from ppo_lab.ppo.losses import ClipRange
from ppo_lab.ppo.rollout import RolloutRows
from ppo_lab.ppo.update import LaneHyperparameters, update

__all__ = ["MIN_COMPILED_STEPS", "MIN_STACKED_STEPS", "Compilation", "should_compile"]

_LOG = logging.getLogger(__name__)

MIN_COMPILED_STEPS, MIN_STACKED_STEPS = 1_000_000, 6_000_000
"""Environment steps from which ``compile=auto`` compiles one run, and a stack of several. One run
of CartPole has repaid the compiler's processor time after 0.9 to 1.0 million, a stack of eight,
which is fast without it, after 3.3 million (benchmarks/results/compile_time.md). Two stacks beside
each other keep both cores compiling for some 45 s, which takes twice as many steps to repay in wall
time."""

_NOT_IN_A_PROGRAM = (
    *(*ABOUT_A_RUN, "checkpoint", "compile", "device", "num_epochs", "eval_every", "eval_episodes"),
)
"""Keys that no program depends on, beside the lanes' own."""


def should_compile(config: Config, num_lanes: int, planned_steps: int) -> bool:
    """Return whether to compile a stack like ``config`` with ``planned_steps`` in total.

    It does not depend on what is in the cache: compiled and uncompiled runs differ by rounding, and
    a command must not change its result by itself. On CUDA ``auto`` does not compile: whether it
    pays there has not been measured.
    """
    if config.compile is Compile.auto:
        is_long = planned_steps >= (MIN_COMPILED_STEPS if num_lanes == 1 else MIN_STACKED_STEPS)
        return is_long and not config.is_on_cuda and config.compile_obstacle is None
    return config.compile is Compile.always


class Compilation:
    """Runs a trainer's compiled update and the diagnostics after it, and compiles its collector.

    The first iteration provides example tensors; everything runs uncompiled until ``compile``.
    Functions become CUDA graphs on CUDA, elsewhere libraries.
    """

    def __init__(
        self, config: Config, collector: Collector, optimizer: LaneOptimizer, compiles: bool
    ) -> None:
        """Compile what runs on ``collector``'s model after the first iteration if ``compiles``."""
        self._config, self._collector, self._optimizer = config, collector, optimizer
        device = collector.env.device
        self.capturer: GraphCapturer | None = None
        """Captures functions as CUDA graphs; None for libraries."""
        if device.type == "cuda":
            self.capturer = CudaGraphCapturer(device)
        collector.keeps_columns = compiles
        self._examples: tuple[RolloutColumns, RolloutRows, Tensor, LaneHyperparameters] | None
        self._examples = None
        self._update: Callable[..., UpdateDiagnostics] | None = None
        self._options: Any = None  # which options of ``LaneHyperparameters`` the update has
        self._after_update: Callable[..., RolloutDiagnostics] = partial(
            after_update, collector.model, plan=collector.plan
        )

    def keep_examples(
        self, rows: RolloutRows, permutations: Tensor, hyperparameters: LaneHyperparameters
    ) -> None:
        """Keep the tensors of the first iteration, which ``compile`` traces with."""
        collector = self._collector
        if collector.columns is not None:
            self._examples = collector.columns, rows, permutations, hyperparameters
            collector.keeps_columns, collector.columns = False, None

    @property
    def is_due(self) -> bool:
        """Whether ``compile`` has its examples and has not been called."""
        return self._examples is not None

    @property
    def is_compiled(self) -> bool:
        """Whether iterations run compiled."""
        return self._update is not None

    def compile(self, noise: Tensor) -> None:
        """Compile the next iterations; ``noise`` (L, R, …) is that of any rollout.

        Without a working compiler they stay uncompiled, or with ``compile=always`` it raises.
        """
        examples, self._examples = self._examples, None
        assert examples is not None
        try:
            self._compile(noise.unflatten(1, (self._config.num_steps, -1)), *examples)
        except CompilerError as error:
            self._refuse_or_warn(error)

    def _refuse_or_warn(self, error: CompilerError) -> None:
        """``compile=auto`` is a wish, ``compile=always`` is not."""
        if self._config.compile is Compile.always:
            raise error
        _LOG.warning("%s; the run goes on uncompiled", error)

    def update(
        self, rows: RolloutRows, permutations: Tensor, hyperparameters: LaneHyperparameters
    ) -> UpdateDiagnostics:
        """Take all gradient steps of an iteration; see ``ppo_lab.ppo.update``."""
        assert self._update is not None
        if self._options != structure_of(hyperparameters):  # a new lane has an option of its own
            spec = self._update_steps.spec(rows, permutations, hyperparameters)
            try:
                (function,) = self._load([spec])
            except CompilerError as error:
                self._refuse_or_warn(error)
                self._update = None
                model, plan = self._collector.model, self._collector.plan
                return update(model, self._optimizer, rows, permutations, hyperparameters, plan)
            self._update = self._update_steps.update(function)
            self._options = structure_of(hyperparameters)
        with torch.no_grad():
            return self._update(rows, permutations, hyperparameters)

    def after_update(self, rows: RolloutRows, clip: ClipRange) -> RolloutDiagnostics:
        """Return the diagnostics of ``rows`` after the update; see ``ppo_lab.ppo.after_update``."""
        with torch.no_grad():
            return self._after_update(rows, clip)

    @cached_property
    def _cache(self) -> ProgramCache:
        values = stack_values(self._config)
        return ProgramCache({k: v for k, v in values.items() if k not in _NOT_IN_A_PROGRAM})

    def _load(self, specs: Sequence[CompileSpec]) -> list[CompiledFunction]:
        if self.capturer is None:
            return self._cache.load(specs)
        return [capture_function(spec, self.capturer) for spec in specs]

    @cached_property
    def _update_steps(self) -> UpdateSteps:
        assert isinstance(self._optimizer, LaneAdam)  # else compilation has an obstacle
        own, is_whole = self._collector, self.capturer is not None
        return UpdateSteps(own.model, self._optimizer, own.plan, is_whole)

    def _compile(
        self,
        noise: Tensor,
        columns: RolloutColumns,
        rows: RolloutRows,
        permutations: Tensor,
        hyperparameters: LaneHyperparameters,
    ) -> None:
        """Load the compiled functions, compiling those that are not cached."""
        collector, env, model = self._collector, self._collector.env, self._collector.model
        block = None
        if isinstance(env, NativeEnv):
            block = RolloutBlock(
                env, collector.act, self._config.num_steps, is_unrolled=self.capturer is None
            )
            rollout_spec = block.spec(model, noise)
        else:
            rollout_spec = act_spec(model, collector.act, columns.observations[0], noise[:, 0])
        specs = [
            self._update_steps.spec(rows, permutations, hyperparameters),
            rollout_spec,
            model_spec("rollout_values", model, collector.evaluate_rollout, columns),
            model_spec("after_update", model, self._after_update, rows, hyperparameters.clip),
        ]
        if isinstance(env, NormalizedEnv):
            specs.append(advance_spec(env.normalizer, columns.observations[0], columns.rewards[0]))
        step, rollout, values, self._after_update, *advance = self._load(specs)
        self._update = self._update_steps.update(step)
        self._options = structure_of(hyperparameters)
        collector.compiled_values = values
        if block is None:
            collector.compiled_act = partial(compiled_act, rollout)
        else:
            collector.compiled_steps = partial(block.rollout, rollout)
        if isinstance(env, NormalizedEnv):
            env.compiled_advance = partial(compiled_advance, advance[0])
