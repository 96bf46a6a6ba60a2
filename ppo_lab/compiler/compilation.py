"""Whether a trainer's iterations are compiled, and the compiled functions that replace its own.

The first iteration always runs uncompiled: it yields example tensors.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo_lab.compiler.compiled import CompiledFunction, CompilerError, structure_of
from ppo_lab.compiler.cuda_graphs import GraphCapturer, GraphLoader
from ppo_lab.compiler.iteration import (
    MAX_UNROLLED_STEPS,
    RolloutBlock,
    Update,
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
from ppo_lab.envs.base import Env
from ppo_lab.envs.native import NativeEnv
from ppo_lab.envs.normalized import NormalizedEnv
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.adam import LaneAdam, LaneOptimizer
from ppo_lab.ppo.after_update import RolloutDiagnostics, after_update
from ppo_lab.ppo.collector import Collector, RolloutColumns
from ppo_lab.ppo.diagnostics import UpdateDiagnostics
from ppo_lab.ppo.losses import ClipRange
from ppo_lab.ppo.rollout import RolloutRows
from ppo_lab.ppo.update import AdvantageNormalization, LaneHyperparameters, UpdatePlan

__all__ = [
    "MIN_COMPILED_STEPS",
    "MIN_STACKED_STEPS",
    "Compilation",
    "TrainerComponents",
    "is_compiled",
]

_LOG = logging.getLogger(__name__)

MIN_COMPILED_STEPS, MIN_STACKED_STEPS = 1_000_000, 6_000_000
"""Environment steps from which ``compile=auto`` compiles one run, and a stack of several. One run
of CartPole has repaid the compiler's processor time after 0.9 to 1.0 million, a stack of eight,
which is fast without it, after 3.3 million (benchmarks/results/compile_time.md). Two stacks beside
each other keep both cores compiling for some 45 s, which takes twice as many steps to repay in wall
time."""

_NOT_IN_A_PROGRAM = (
    "compile",
    "device",
    "forecast",
    "forecast_format",
    "num_epochs",
    "num_threads",
    "profile",
    "vram_budget_gib",
    "vram_limit_gib",
)
"""Keys that no program depends on, beside the lanes' own."""


def is_compiled(config: Config, num_lanes: int, planned_steps: int) -> bool:
    """Return whether to compile a stack like ``config`` with ``planned_steps`` in total.

    It depends on nothing else, neither on the clock nor on what is in the cache: compiled and
    uncompiled runs differ by rounding, and a command must not change its result by itself. On CUDA
    ``auto`` does not compile: whether it pays there has not been measured.
    """
    if config.compile is Compile.auto:
        is_long = planned_steps >= (MIN_COMPILED_STEPS if num_lanes == 1 else MIN_STACKED_STEPS)
        return is_long and not config.is_on_cuda and config.compile_obstacle is None
    return config.compile is Compile.always


@dataclass(frozen=True)
class TrainerComponents:
    """The components of a trainer that compiled functions run."""

    model: ActorCritic
    optimizer: LaneOptimizer
    env: Env
    collector: Collector
    plan: UpdatePlan
    rows_per_pass: int


class Compilation:
    """Runs a trainer's update and the diagnostics after it, and compiles its collector.

    The first update provides example tensors; everything runs uncompiled until ``compile``.
    """

    def __init__(
        self,
        config: Config,
        components: TrainerComponents,
        compiles: bool,
        capturer: GraphCapturer | None = None,
    ) -> None:
        """Compile ``components`` after the first iteration if ``compiles``.

        With a ``capturer`` functions become CUDA graphs, else libraries.
        """
        self._config, self.components, self._capturer = config, components, capturer
        self._wants_examples = compiles
        self._examples: tuple[RolloutRows, Tensor, LaneHyperparameters] | None = None
        """The arguments of the first update."""
        self._update: Update | None = None
        self._after_update: CompiledFunction | None = None
        components.collector.keeps_columns = compiles

    @property
    def is_due(self) -> bool:
        """Whether ``compile`` has its examples and has not been called."""
        return self._examples is not None

    def compile(self, noise: Tensor) -> None:
        """Compile the next iterations; without a working compiler they stay uncompiled.

        ``noise`` (L, R, …) is that of any rollout.

        Raises:
            CompilerError: no compiler works, and ``compile=always``.
        """
        collector, examples = self.components.collector, self._examples
        columns = collector.columns
        assert examples is not None and columns is not None  # noqa: PT018
        collector.keeps_columns, collector.columns, self._examples = False, None, None
        try:
            self._compile(noise.unflatten(1, (self._config.num_steps, -1)), columns, *examples)
        except CompilerError as error:
            if self._config.compile is Compile.always:
                raise
            _LOG.warning("%s; the run goes on uncompiled", error)

    @property
    def is_compiled(self) -> bool:
        """Whether iterations run compiled."""
        return self._update is not None

    def keep_examples(
        self, rows: RolloutRows, permutations: Tensor, coefficients: LaneHyperparameters
    ) -> None:
        """Keep the arguments of the first update, whose tensors ``compile`` traces with."""
        if self._wants_examples:
            self._examples, self._wants_examples = (rows, permutations, coefficients), False

    def update(
        self, rows: RolloutRows, permutations: Tensor, coefficients: LaneHyperparameters
    ) -> UpdateDiagnostics:
        """Take all gradient steps of an iteration; see ``ppo_lab.ppo.update``."""
        assert self._update is not None
        if self._options != structure_of(coefficients):  # a new lane has an option of its own
            self._update = self._compile_update(rows, permutations, coefficients)
        with torch.no_grad():
            return self._update(rows, permutations, coefficients)

    def after_update(self, rows: RolloutRows, clip: ClipRange) -> RolloutDiagnostics:
        """Return the diagnostics of ``rows`` after the update; see ``ppo_lab.ppo.after_update``."""
        if self._after_update is None:
            return self._diagnose(rows, clip)
        with torch.no_grad():
            diagnostics: RolloutDiagnostics = self._after_update(rows, clip)
        return diagnostics

    def _diagnose(self, rows: RolloutRows, clip: ClipRange) -> RolloutDiagnostics:
        own = self.components
        return after_update(
            own.model,
            rows,
            clip,
            are_normalized=own.plan.normalization is not AdvantageNormalization.none,
            rows_per_pass=own.rows_per_pass,
            store=own.plan.store,
        )

    @functools.cached_property
    def _loader(self) -> ProgramCache | GraphLoader:
        if self._capturer is not None:
            return GraphLoader(self._capturer)
        values = stack_values(self._config)
        return ProgramCache({k: v for k, v in values.items() if k not in _NOT_IN_A_PROGRAM})

    @functools.cached_property
    def _update_steps(self) -> UpdateSteps:
        own, is_whole = self.components, self._capturer is not None
        assert isinstance(own.optimizer, LaneAdam)  # else compilation has an obstacle
        return UpdateSteps(own.model, own.optimizer, own.plan, is_whole=is_whole)

    def _compile_update(
        self, rows: RolloutRows, permutations: Tensor, coefficients: LaneHyperparameters
    ) -> Update:
        (function,) = self._loader.load([self._update_steps.spec(rows, permutations, coefficients)])
        self._options = structure_of(coefficients)
        return self._update_steps.update(function)

    def _compile(
        self,
        noise: Tensor,
        columns: RolloutColumns,
        rows: RolloutRows,
        permutations: Tensor,
        coefficients: LaneHyperparameters,
    ) -> None:
        """Load the compiled functions, compiling those that are not cached."""
        own, block = self.components, None
        model, collector, env = own.model, own.collector, own.env
        if isinstance(env, NativeEnv):
            most_steps = MAX_UNROLLED_STEPS if self._capturer is None else env.max_block_steps
            block = RolloutBlock(env, collector.act, self._config.num_steps, most_steps)
            rollout_spec = block.spec(model, noise)
        else:
            rollout_spec = act_spec(model, collector.act, columns.observations[0], noise[:, 0])
        specs = [
            self._update_steps.spec(rows, permutations, coefficients),
            rollout_spec,
            model_spec("rollout_values", model, collector.evaluate_rollout, columns),
            model_spec("after_update", model, self._diagnose, rows, coefficients.clip),
        ]
        if isinstance(env, NormalizedEnv):
            specs.append(advance_spec(env.normalizer, columns.observations[0], columns.rewards[0]))
        step, rollout, values, self._after_update, *advance = self._loader.load(specs)
        self._update, self._options = self._update_steps.update(step), structure_of(coefficients)
        collector.compiled_values = values
        if block is None:
            collector.compiled_act = compiled_act(rollout)
        else:
            collector.compiled_steps = block.rollout(rollout)
        if isinstance(env, NormalizedEnv):
            env.compiled_advance = compiled_advance(*advance)
