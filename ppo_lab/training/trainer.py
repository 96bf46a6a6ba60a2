"""The training loop for a stack of lanes: collect, advantages, update, diagnose, record.

A lane is one config with one seed; ``python -m ppo_lab`` trains a stack of one.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, R = T * N, E = epochs.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from ppo_lab.compiler.compilation import Compilation, should_compile
from ppo_lab.config.lanes import check_lane, check_stack
from ppo_lab.config.run import Config
from ppo_lab.devices.meters import Meters
from ppo_lab.devices.observers import PhaseObserver, PhaseObservers
from ppo_lab.devices.placement import Placement
from ppo_lab.envs.text.config import TextConfig
from ppo_lab.networks import ActorCritic, Initializer
from ppo_lab.ppo.advantages import Advantages
from ppo_lab.ppo.diagnostics import UpdateDiagnostics
from ppo_lab.ppo.rollout import Rollout, RolloutRows, lane_rows
from ppo_lab.ppo.sequence_collector import SequenceCollector
from ppo_lab.ppo.update import update
from ppo_lab.tracking import Record
from ppo_lab.training.advantages import estimate
from ppo_lab.training.checkpoint import LaneState
from ppo_lab.training.collectors import build_collector
from ppo_lab.training.evaluation import Evaluator
from ppo_lab.training.finite import FiniteCheck
from ppo_lab.training.lane_progress import LaneProgress
from ppo_lab.training.lane_runs import LaneRuns
from ppo_lab.training.lane_state import LaneStates
from ppo_lab.training.lane_values import LaneValues, schedule_metrics
from ppo_lab.training.plan import build_plan
from ppo_lab.training.pretraining import pretrained, start_from
from ppo_lab.training.recorder import EpisodeMeter, IterationTensors, Recorder
from ppo_lab.training.reference import TextKl, build_reference, named_metrics
from ppo_lab.training.scores import History
from ppo_lab.utils import rng
from ppo_lab.utils.errors import ConfigError

__all__ = ["Trainer"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Trainer(LaneRuns):
    """Trains L configs, equal but for their lane keys, as one program."""

    def __init__(
        self,
        configs: Sequence[Config],
        on_record: Callable[[int, Record], None] | None = None,
        *,
        compiles: bool | None = None,
        observers: Sequence[PhaseObserver] = (),
        placement: Placement | None = None,
        dry_steps: int | None = None,
    ) -> None:
        """Build what the loop needs; ``configs`` has one config per lane.

        ``on_record`` is called with (lane, record) for each live lane after every iteration;
        ``observers`` see every phase, after the trainer's own meters. Whether it ``compiles`` is
        decided from the configs' steps if it is not given. For a dry run, an update takes
        ``dry_steps`` gradient steps per pass, and environments only return tensors of their sizes.
        """
        check_stack(configs)
        config, memory, num_lanes = configs[0], configs[0].memory, len(configs)
        self.config, self.progress, self._on_record = config, LaneProgress(configs), on_record
        self.placement = placement = placement or Placement(config.torch_device)
        device, dtype = placement.device, config.weights_dtype
        self.meters = Meters(placement, is_profiled=config.is_profiled)
        self.observers = PhaseObservers([self.meters, *observers])
        self.spec = config.check_env()

        seeds = torch.tensor([c.seed for c in configs], dtype=torch.int64)
        self._first = pretrained(config, self.spec, is_dry=dry_steps is not None)
        self.reference = build_reference(config, self.spec, num_lanes, placement, self._first)
        """The frozen reference of texts, if rewards have a KL to it."""
        self._text_kl: TextKl | None = None  # of the latest rollout
        self.model = self._build_model(seeds)
        self.optimizer = memory.build_optimizer(
            self.model,
            placement,
            eps=config.adam_eps,
            clips=config.max_grad_norm is not None,
            separate_grad_clip=config.clips_separately,
        )
        self._lanes = LaneValues(configs, device, dtype)
        self.env = config.env.build(
            seeds=seeds,
            num_envs=config.num_envs,
            placement=placement,
            gamma=self._lanes.gamma,
            dtype=dtype,
            is_dry=dry_steps is not None,
            num_steps=config.rollout_steps,
        )
        self.plan = build_plan(config, self.model, placement, dry_steps, observers)
        self.collector = build_collector(config, self.env, self.model, self.plan)
        if compiles is None:
            compiles = should_compile(config, num_lanes, sum(c.total_steps for c in configs))
        self._compilation = Compilation(config, self.collector, self.optimizer, compiles)
        self._episodes = EpisodeMeter(num_lanes, config.num_envs, device)
        self.recorder = Recorder(
            self.env,
            placement,
            self.model.distribution.max_entropy,
            samples_every=config.env.samples_every if isinstance(config.env, TextConfig) else 0,
        )
        parts = self.model, self.optimizer, self.collector, self._episodes
        others = {"reference.kl_coef": self.reference.kl_coef} if self.reference else {}
        digest = self._first.digest if self._first else None
        self._states = LaneStates(*parts, self.recorder.histories, others, digest)
        self.evaluator = Evaluator(config, num_lanes)
        self._start_s = time.perf_counter()

    def _build_model(self, seeds: Tensor) -> ActorCritic:
        config = self.config
        initializer = Initializer(seeds, self.placement.device, config.weights_dtype)
        model = config.memory.build_model(
            config.network, self.spec, initializer, config.compute_dtype
        )
        start_from(model, self._first)
        return model

    def iterate(self) -> None:
        """Run one iteration of every lane: collect, advantages, update, diagnose, record."""
        if self._compilation.is_due:
            self.phase("compile", self._compilation.compile, self._noise())
        if at_boundary := list(filter(self.is_at_boundary, self.live_lanes)):
            self.phase("restart", self._restart_environments, at_boundary)
        self.meters.begin_iteration(self.iteration + 1)
        rollout, tensors = self.run_phases()
        self.progress.count(rollout.live)
        if rollout.live is not None:
            self._lanes.num_live += rollout.live.sum((0, 2))
        self.record(tensors)

    def run_phases(self) -> tuple[Rollout, IterationTensors]:
        """Run the phases of an iteration, for a run as for its forecast."""
        rollout = self.phase("rollout", self.collect)
        collector = self.collector
        if isinstance(collector, SequenceCollector) and collector.has_evaluation:
            rollout = self.phase("evaluation", self._evaluate, collector, rollout)
        advantages = self.phase("advantages", self.advantages, rollout)
        rows = lane_rows(rollout, advantages, self.config.aggregation)
        if starting := list(filter(self.is_policy_start, self.live_lanes)):
            self.optimizer.reset_lanes(torch.tensor(starting, device=self.placement.device))
        diagnostics = self.phase("update", self.update, rows)
        return rollout, self.phase("diagnostics", self.diagnose, rollout, rows, diagnostics)

    def phase(self, name: str, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run ``work(*args, **kwargs)`` as a phase that the observers see; return its result."""
        with self.observers.phase(name, *args):
            result = work(*args, **kwargs)
            self.observers.finish(name, result)
        return result

    def collect(self) -> Rollout:
        """Return the next T steps of every environment."""
        return self.collector.collect(
            self._noise(), self._lanes.keys(rng.Stream.RESTART, self.iteration)
        )

    def _evaluate(self, collector: SequenceCollector, rollout: Rollout) -> Rollout:
        """Add the critic's values, and the KL to the reference, in full-sequence passes."""
        rollout = collector.evaluate(rollout)
        if self.reference is not None:
            rollout, self._text_kl = self.reference.evaluate(rollout, self.plan)
        return rollout

    def advantages(self, rollout: Rollout) -> Advantages:
        """Return advantages and value targets, (T, L, N)."""
        return estimate(rollout, self.config, self._lanes)

    def update(self, rows: RolloutRows) -> UpdateDiagnostics:
        """Train on ``rows`` for num_epochs epochs."""
        hyperparameters = self._lanes.hyperparameters(self.iteration)
        args = rows, self._permutations(), hyperparameters
        if self._compilation.is_compiled:
            return self._compilation.update(*args)
        self._compilation.keep_examples(*args)
        return update(self.model, self.optimizer, *args, self.plan)

    def _noise(self) -> Tensor:
        """Return the noise that decides this iteration's actions, (L, R, …)."""
        keys = self._lanes.keys(rng.Stream.ACTION, self.iteration)
        return self.model.distribution.noise(keys, self.config.num_rows, self.config.weights_dtype)

    def _permutations(self) -> Tensor:
        """Return the order of the rows in each epoch of this iteration, (E, L, R)."""
        num_epochs, num_rows = self.config.num_epochs, self.config.num_rows
        num_together = self.plan.num_sequence_steps
        return self._lanes.permutations(self.iteration, num_epochs, num_rows, num_together)

    def diagnose(
        self, rollout: Rollout, rows: RolloutRows, diagnostics: UpdateDiagnostics
    ) -> IterationTensors:
        """Return what the record needs, still on the device."""
        ended = rollout.terminated | rollout.truncated
        if rollout.live is not None:  # whole episodes: none goes on from the rollout before
            self._episodes.reset_lanes(torch.arange(len(self.configs), device=ended.device))
        episodes = self._episodes.count(rollout.env_rewards, ended)
        clip = self._lanes.hyperparameters(self.iteration).clip
        after = self._compilation.after_update(rows, clip)
        check = FiniteCheck(rollout, diagnostics, self.model, self.plan.num_minibatches)
        sums = check.sums(self.optimizer.weights())
        named = named_metrics(rollout, self.config, self._text_kl)
        return IterationTensors(diagnostics, after, episodes, check, sums, named)

    def record(self, tensors: IterationTensors) -> None:
        """Copy the iteration's results to the host and pass one record per live lane on.

        Policies whose turn it is are evaluated before, as records have the time of that too.
        """
        evals: Mapping[int, dict[str, float]] = {}
        if lanes := self.lanes_to_evaluate():
            keys = self._lanes.keys(rng.Stream.EVAL, self.iteration)
            with self.meters.phase("eval"):
                evals = self.evaluator.evaluate(self.model, self.env.state_dict(), keys, lanes)
        begin_s = time.perf_counter()
        records = self.recorder.records(tensors, self.progress, shared=self._measure())
        for lane, metrics in evals.items():
            history, step = self.history(lane), self.lane_steps(lane)
            if history.diverged is None and history.add_eval(step, metrics["eval/return"]):
                self.evaluator.keep(lane, step, self.model, self.env.state_dict())
        if self._on_record is not None:
            for lane, record in records.items():
                schedule = schedule_metrics(self.configs[lane], self.progress.spent[lane])
                metrics = {**record.metrics, **schedule, **evals.get(lane, {})}
                self._on_record(lane, dataclasses.replace(record, metrics=metrics))
        self.meters.clock.add("record", time.perf_counter() - begin_s)

    def _measure(self) -> dict[str, float]:
        """Return this iteration's measurements of the whole stack."""
        if self.placement.is_cuda:
            torch.cuda.synchronize(self.placement.device)
        self.meters.clock.add("env", self.collector.env_s)
        self.collector.env_s = 0.0
        seconds = self.meters.clock.read()
        num_steps = self.progress.num_latest_steps
        metrics = {f"time/{name}_s": value for name, value in seconds.items()}
        elapsed_s = metrics["time/elapsed_s"] = self.elapsed_s
        metrics["charts/SPS"] = self.num_live_steps / elapsed_s
        metrics["perf/SPS_rollout"] = num_steps / seconds["rollout"]
        metrics["perf/SPS_update"] = num_steps / seconds["update"]
        return metrics | self.observers.read()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the trainer was built."""
        return time.perf_counter() - self._start_s

    @torch.no_grad()
    def replace_lanes(self, configs: Mapping[int, Config]) -> None:
        """Start new runs in the lanes of ``configs``, as if the stack had been built with them.

        To be called between iterations. Tensors keep their storage; other lanes are unaffected.
        """
        if (limit := self.config.lane_limit) is not None:
            raise ConfigError(limit[0], limit[1], "cannot replace a lane")
        for config in configs.values():
            check_lane(config, self.config)
        lanes = torch.tensor(list(configs), device=self.placement.device)
        seeds = torch.tensor([config.seed for config in configs.values()])
        fresh = self._build_model(seeds)
        for parameter, value in zip(self.model.parameters(), fresh.parameters()):
            parameter.index_copy_(0, lanes, value)
        self.optimizer.reset_lanes(lanes)
        self._lanes.replace(lanes, list(configs.values()), self.iteration)
        if self.reference is not None:
            self.reference.reset_lanes(lanes)
        self._episodes.reset_lanes(lanes)
        for lane, config in configs.items():
            self.progress.begin_lane(lane, config)
            self.recorder.histories[lane], self.evaluator.best[lane] = History(), None
            self.collector.reset_lane(lane, config.seed)

    def has_state(self, lane: int) -> bool:
        """Return whether the run in ``lane`` can be continued from here; see ``Env.state_mode``."""
        is_readable = self.env.state_mode == "exact" or self.is_at_boundary(lane)
        return is_readable and self.history(lane).diverged is None

    def lane_state(self, lane: int) -> LaneState:
        """Return all that the next iterations of ``lane`` depend on, but its config."""
        assert self.has_state(lane)
        is_compiled = self._compilation.is_compiled or self._compilation.is_due
        numbers = {"iteration": self.lane_iteration(lane), "is_compiled": is_compiled}
        if self.config.whole_episodes:
            numbers["env_steps"] = self.lane_steps(lane)
        state = self._states.read(lane, numbers)
        return LaneState(state.tensors | self.evaluator.lane_tensors(lane), state.numbers)

    def load_lane_state(self, lane: int, state: LaneState) -> None:
        """Continue a run in ``lane``, which already has its config, where ``state`` was taken.

        The run goes on compiled if it was before, and uncompiled if it was not. Raises
        ``ValueError`` if the state does not fit the stack.
        """
        if state.numbers["is_compiled"]:
            self._compile_next()
        elif self._compilation.is_compiled:
            raise ValueError("the run was not compiled, but this stack is")
        else:
            self.collector.keeps_columns = False
        self._states.write(lane, state)
        self.evaluator.load(lane, state.tensors)
        ages = state.numbers["iteration"], state.numbers.get("env_steps")
        begin = self.progress.begin_lane(lane, self.configs[lane], *ages)
        self._lanes.begin_lane(lane, begin, num_live=self.lane_steps(lane))

    def _compile_next(self) -> None:
        """Have the next iteration compile, though it has no uncompiled one before it."""
        if self._compilation.is_compiled or self._compilation.is_due:
            return
        dry = Trainer(self.configs, compiles=True, dry_steps=1)  # only for example tensors
        rollout = dry.collect()
        rows = lane_rows(rollout, dry.advantages(rollout))
        self.collector.columns = dry.collector.columns
        hyperparameters = self._lanes.hyperparameters(self.iteration)
        self._compilation.keep_examples(rows, self._permutations(), hyperparameters)

    def _restart_environments(self, lanes: Sequence[int]) -> None:
        """Restart the environments of ``lanes`` with seeds from (seed, iteration)."""
        seeds = self._lanes.keys(rng.Stream.RESTART, self.iteration) & (2**63 - 1)
        for lane in lanes:
            self.collector.reset_lane(lane, int(seeds[lane]), is_same_run=True)
        self._episodes.reset_lanes(torch.tensor(lanes, device=self.placement.device))

    def close(self) -> None:
        """Stop an open profiler window and close the environments."""
        self.meters.close()
        self.evaluator.close()
        self.env.close()
