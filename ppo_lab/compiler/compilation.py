"""Whether a trainer's iterations are compiled, and the compiled parts that then take over.

The first iteration always runs uncompiled: it shows the programs what their tensors look like.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ppo_lab.compiler.cuda_graphs import GraphCapturer, GraphLoader
from ppo_lab.compiler.program_cache import CompilerError, ProgramCache, ProgramSource, Run
from ppo_lab.compiler.rollout_programs import (
    MAX_BLOCK_STEPS,
    CompiledAct,
    CompiledAdvance,
    CompiledAfterUpdate,
    CompiledRolloutValues,
    CompiledSteps,
)
from ppo_lab.compiler.update_program import CompiledUpdate, WholeUpdate
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

__all__ = ["MIN_COMPILED_STEPS", "MIN_STACKED_STEPS", "Compilation", "Parts", "is_compiled"]

_LOG = logging.getLogger(__name__)

MIN_COMPILED_STEPS, MIN_STACKED_STEPS = 1_000_000, 6_000_000
"""Environment steps from which ``compile=auto`` compiles one run, and a stack of several. One run
of CartPole has repaid the compiler's processor time after 0.9 to 1.0 million, a stack of eight,
which is fast without it, after 3.3 million (benchmarks/results/compile_time.md). Two stacks beside
each other wait some 45 s on both cores, which takes twice that to repay in wall time."""

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
    """Return whether to compile a stack like ``config`` that will make ``planned_steps`` in all.

    It depends on nothing else, neither on the clock nor on what lies in the cache: compiled and
    uncompiled runs differ by rounding, and a command must not change its result by itself. On CUDA
    ``auto`` does not compile: whether it pays there has not been measured.
    """
    if config.compile is Compile.auto:
        is_long = planned_steps >= (MIN_COMPILED_STEPS if num_lanes == 1 else MIN_STACKED_STEPS)
        return is_long and not config.is_on_cuda and config.compile_obstacle is None
    return config.compile is Compile.always


@dataclass(frozen=True)
class _Examples:
    """Tensors of the first iteration."""

    noise: Tensor  # (L, T, N, …)
    columns: RolloutColumns
    rows: RolloutRows
    permutations: Tensor  # (E, L, R)
    coefficients: LaneHyperparameters


class _Loader(Protocol):
    """Makes programs of one kind: compiled libraries, or recordings."""

    def is_cached(self, sources: Sequence[ProgramSource]) -> bool:
        """Return whether ``load`` will not take long."""

    def load(self, sources: Sequence[ProgramSource]) -> Sequence[Run]:
        """Return the programs of ``sources``."""


@dataclass(frozen=True)
class Parts:
    """What a trainer is made of, as far as programs run it."""

    model: ActorCritic
    optimizer: LaneOptimizer
    env: Env
    collector: Collector
    plan: UpdatePlan
    rows_per_pass: int


class Compilation:
    """Runs a trainer's update and what follows it, and gives its collector compiled parts.

    All of it runs uncompiled until the tensors of an iteration have been noted.
    """

    def __init__(
        self,
        config: Config,
        parts: Parts,
        compiles: bool,
        recorder: GraphCapturer | None = None,
    ) -> None:
        """Compile ``parts`` after the first iteration if ``compiles``.

        With a ``recorder`` programs are its recordings, which may be long; else libraries.
        """
        self._config, self.parts, self._recorder = config, parts, recorder
        self._examples: _Examples | None = None
        self._update: CompiledUpdate | None = None
        self._after_update: CompiledAfterUpdate | None = None
        self.wants_examples = compiles
        """Whether an iteration's tensors are still to be noted."""
        parts.collector.keeps_columns = self.wants_examples

    def note(
        self,
        noise: Tensor,
        rows: RolloutRows,
        permutations: Tensor,
        coefficients: LaneHyperparameters,
    ) -> None:
        """Note an iteration's tensors, with ``noise`` (L, R, …) and ``permutations`` (E, L, R)."""
        collector = self.parts.collector
        assert collector.columns is not None
        noise = noise.unflatten(1, (self._config.num_steps, -1))
        self._examples = _Examples(noise, collector.columns, rows, permutations, coefficients)
        collector.keeps_columns, collector.columns = False, None
        self.wants_examples = False

    @property
    def is_due(self) -> bool:
        """Whether all is known that ``compile`` needs, and it has not been called."""
        return self._examples is not None

    def compile(self) -> None:
        """Run the next iterations as programs; without a compiler go on as before.

        Raises:
            CompilerError: there is none that works, and ``compile=always``.
        """
        examples, self._examples = self._examples, None
        assert examples is not None
        try:
            self._compile(examples)
        except CompilerError as error:
            if self._config.compile is Compile.always:
                raise
            _LOG.warning("%s; the run goes on uncompiled", error)

    @property
    def is_compiled(self) -> bool:
        """Whether iterations run as programs."""
        return self._update is not None

    def update(
        self, rows: RolloutRows, permutations: Tensor, coefficients: LaneHyperparameters
    ) -> UpdateDiagnostics:
        """Pass over ``rows`` once per permutation (E, L, R); see ``ppo_lab.ppo.update``."""
        assert self._update is not None
        if not self._update.fits(coefficients):  # a new lane came with an option of its own
            source = self._update.source(rows, permutations, coefficients)
            (self._update.program,) = self._loader.load([source])
        with torch.no_grad():
            return self._update(rows, permutations, coefficients)

    def after_update(self, rows: RolloutRows, clip: ClipRange) -> RolloutDiagnostics:
        """Return what the new policy says of ``rows``; see ``ppo_lab.ppo.after_update``."""
        if self._after_update is None:
            return self._look_back(rows, clip)
        with torch.no_grad():
            return self._after_update(rows, clip)

    def _look_back(self, rows: RolloutRows, clip: ClipRange) -> RolloutDiagnostics:
        normalization = self._config.advantage_normalization
        return after_update(
            self.parts.model,
            rows,
            clip,
            are_normalized=normalization is not AdvantageNormalization.none,
            rows_per_pass=self.parts.rows_per_pass,
            store=self.parts.plan.store,
        )

    @functools.cached_property
    def _loader(self) -> _Loader:
        if self._recorder is not None:
            return GraphLoader(self._recorder)
        values = stack_values(self._config)
        return ProgramCache({k: v for k, v in values.items() if k not in _NOT_IN_A_PROGRAM})

    def _compile(self, examples: _Examples) -> None:
        """Load the programs, making those that are not there."""
        model, optimizer = self.parts.model, self.parts.optimizer
        collector, env = self.parts.collector, self.parts.env
        assert isinstance(optimizer, LaneAdam)  # or there was an obstacle
        is_recorded = self._recorder is not None
        kind = WholeUpdate if is_recorded else CompiledUpdate
        update_part = kind(model, optimizer, self.parts.plan)
        after_part = CompiledAfterUpdate(model, self._look_back)
        critique = CompiledRolloutValues(model, collector.evaluate_rollout)
        steps = act = advance = None
        if isinstance(env, NativeEnv):
            most_steps = env.max_block_steps if is_recorded else MAX_BLOCK_STEPS
            steps = CompiledSteps(model, env, self._config.num_steps, most_steps)
            rollout_source = steps.source(examples.noise)
        else:
            act = CompiledAct(model, collector.act)
            rollout_source = act.source(examples.columns.observations[0], examples.noise[:, 0])
        sources = [
            update_part.source(examples.rows, examples.permutations, examples.coefficients),
            rollout_source,
            critique.source(examples.columns),
            after_part.source(examples.rows, examples.coefficients.clip),
        ]
        if isinstance(env, NormalizedEnv):
            advance = CompiledAdvance(env.normalizer)
            columns = examples.columns
            sources.append(advance.source(columns.observations[0], columns.rewards[0]))
        if not self._loader.is_cached(sources):
            _LOG.info("compiling, which takes a minute; later runs of this kind load the result")
        programs = self._loader.load(sources)
        parts = (update_part, steps or act, critique, after_part, advance)
        for part, program in zip(parts, programs):
            assert part is not None
            part.program = program
        self._update, self._after_update = update_part, after_part
        collector.steps, collector.compiled_act, collector.critique = steps, act, critique
        if isinstance(env, NormalizedEnv):
            env.compiled_advance = advance
