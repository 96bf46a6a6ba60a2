"""The training loop: collect, advantages, update, record, for a stack of lanes.

A lane is one config with one seed; ``python -m ppo_lab`` trains a stack of one.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, R = T * N, E = epochs.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo_lab.compiler.compilation import Compilation, TrainerComponents
from ppo_lab.compiler.cuda_graphs import CudaGraphCapturer, GraphCapturer
from ppo_lab.config.lanes import check_lane, check_stack
from ppo_lab.config.run import Config
from ppo_lab.devices.meters import Meters
from ppo_lab.devices.placement import Placement
from ppo_lab.envs.base import Env
from ppo_lab.networks import ActorCritic, Initializer
from ppo_lab.ppo.advantages import Advantages, gae
from ppo_lab.ppo.collector import Collector
from ppo_lab.ppo.diagnostics import UpdateDiagnostics
from ppo_lab.ppo.rollout import Rollout, RolloutRows, lane_rows
from ppo_lab.ppo.update import UpdatePlan
from ppo_lab.tracking import Record
from ppo_lab.training.lane_values import LaneTensors, schedule_metrics
from ppo_lab.training.precision import set_matmul_precision
from ppo_lab.training.recorder import EpisodeMeter, IterationTensors, Recorder
from ppo_lab.training.scores import History
from ppo_lab.utils import rng
from ppo_lab.utils.errors import ConfigError

__all__ = ["LaneResult", "Trainer"]

_MIN_ROWS_PER_PASS = 4096  # forward passes without gradients are not split below this


@dataclass(frozen=True)
class LaneResult:
    """What became of one lane."""

    history: History
    diverged: str | None
    """The first number that was not finite, with its value; None for a run that ended well."""


class Trainer:
    """Trains L configs that differ in nothing but their lane keys, as one program.

    A lane is *live* from its first iteration until it is retired: at its end, or before. A retired
    lane may be given another config; until then it is computed along and changes nothing.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        on_record: Callable[[int, Record], None] | None = None,
        planned_steps: int | None = None,
    ) -> None:
        """Build environments, model and optimizer; ``on_record`` gets (lane, record).

        ``planned_steps`` are the environment steps of all runs that will take a lane, by default
        those of ``configs``.
        """
        check_stack(configs)
        config = configs[0]
        self.config, self.configs, self._on_record = config, list(configs), on_record
        device = config.torch_device
        self.placement = self._build_placement(device)
        self.meters = Meters(self.placement, is_profiled=config.is_profiled)
        self.spec = config.check_env()
        torch.set_num_threads(config.choose_num_threads(self.spec))
        set_matmul_precision(config)

        seeds = torch.tensor([c.seed for c in configs], dtype=torch.int64)
        self.model = self._build_model(seeds)
        self.optimizer = config.memory.build_optimizer(
            self.model,
            self.placement,
            eps=config.adam_eps,
            separate_grad_clip=config.clips_separately,
        )
        self._lanes = LaneTensors(configs, device, config.weights_dtype)
        self.env = self._build_env(seeds)
        self._rows_per_pass = max(config.num_rows // config.num_minibatches, _MIN_ROWS_PER_PASS)
        self._store = config.memory.build_store(self.placement)
        self._collector = Collector(
            self.env,
            self.model,
            num_steps=config.num_steps,
            rows_per_pass=self._rows_per_pass,
            store=self._store,
        )
        plan = UpdatePlan(
            config.num_minibatches,
            config.advantage_normalization,
            store=self._store,
            num_micro_batches=config.memory.num_micro_batches,
        )
        self._episodes = EpisodeMeter(len(configs), config.num_envs, device)
        self._recorder = Recorder(
            len(configs), config.num_rows, self.placement, self.model.distribution.max_entropy
        )
        if planned_steps is None:
            planned_steps = sum(c.total_steps for c in configs)
        components = TrainerComponents(
            self.model, self.optimizer, self.env, self._collector, plan, self._rows_per_pass
        )
        recorder = self._build_recorder(device)
        self._compilation = Compilation(config, components, planned_steps, recorder)
        self._is_live = [True] * len(configs)
        self._begins = [0] * len(configs)  # the stack's iteration at which a lane began
        self._start_s = time.perf_counter()
        self.iteration = 0
        """Iterations of the stack since it was built."""
        self.num_live_steps = 0
        """Environment steps of all live lanes since then."""

    def _build_placement(self, device: torch.device) -> Placement:
        return Placement(device)

    def _build_model(self, seeds: Tensor) -> ActorCritic:
        config = self.config
        initializer = Initializer(seeds, self.placement.device, config.weights_dtype)
        return config.memory.build_model(
            config.network, self.spec, initializer, config.compute_dtype
        )

    def _build_env(self, seeds: Tensor) -> Env:
        return self.config.env.build(
            seeds=seeds,
            num_envs=self.config.num_envs,
            placement=self.placement,
            gamma=self._lanes.gamma,
            dtype=self.config.weights_dtype,
        )

    def _build_recorder(self, device: torch.device) -> GraphCapturer | None:
        """Return what makes recordings of programs, None where they are compiled libraries."""
        return CudaGraphCapturer(device) if device.type == "cuda" else None

    def run(self) -> list[LaneResult]:
        """Train until every lane has spent its steps or diverged."""
        try:
            while self._retire_ended():
                self.iterate()
        finally:
            self.meters.close()
        return [self.result(lane) for lane in range(len(self.configs))]

    def _retire_ended(self) -> bool:
        """Retire the lanes that have ended; return whether one goes on."""
        for lane in filter(self.has_ended, self.live_lanes):
            self.retire_lane(lane)
        return bool(self.live_lanes)

    @property
    def live_lanes(self) -> list[int]:
        """The lanes that train; they alone are recorded."""
        return [lane for lane, is_live in enumerate(self._is_live) if is_live]

    def lane_iteration(self, lane: int) -> int:
        """Return the iterations that the config in ``lane`` has gone through."""
        return self.iteration - self._begins[lane]

    def has_ended(self, lane: int) -> bool:
        """Return whether a lane has spent its steps or diverged."""
        is_done = self.lane_iteration(lane) >= self.configs[lane].num_iterations
        return is_done or self.diverged(lane) is not None

    def result(self, lane: int) -> LaneResult:
        """Return what has become of a lane so far."""
        return LaneResult(self.history(lane), self.diverged(lane))

    def retire_lane(self, lane: int) -> None:
        """Record a lane no more; its parameters stay as they are."""
        self._is_live[lane] = False
        self._lanes.freeze_lane(lane)

    @torch.no_grad()
    def replace_lanes(self, configs: Mapping[int, Config]) -> None:
        """Begin new runs in some lanes, as if the stack had been built with them.

        Between iterations only. All storage stays where it is, and other lanes are not touched.

        Raises:
            ConfigError: a config cannot be a lane of this stack.
        """
        if self.config.memory.max_lanes is not None:
            raise ConfigError("memory", self.config.memory.name, "begins every run anew")
        for config in configs.values():
            check_lane(config, self.config)
        lanes = torch.tensor(list(configs), device=self.placement.device)
        seeds = torch.tensor([config.seed for config in configs.values()])
        fresh = self._build_model(seeds)
        for parameter, value in zip(self.model.parameters(), fresh.parameters()):
            parameter.index_copy_(0, lanes, value)
        self.optimizer.reset_lanes(lanes)
        self._lanes.replace(lanes, list(configs.values()), self.iteration)
        self._episodes.reset_lanes(lanes)
        for lane, config in configs.items():
            self.configs[lane], self._begins[lane] = config, self.iteration
            self._is_live[lane] = True
            self._recorder.reset_lane(lane)
            self._collector.reset_lane(lane, config.seed)

    def iterate(self) -> None:
        """Collect, advantages, update, record; what it needed is free again when it returns."""
        if self._compilation.is_due:
            with self.meters.phase("compile"):
                self._compilation.compile(self._noise())
        self.meters.begin_iteration(self.iteration + 1)
        with self.meters.phase("rollout"):
            rollout = self.collect()
        with self.meters.phase("advantages"):
            advantages = self.advantages(rollout)
        rows = lane_rows(rollout, advantages)
        with self.meters.phase("update"):
            diagnostics = self.update(rows)
        with self.meters.phase("diagnostics"):
            tensors = self.diagnose(rollout, rows, diagnostics)
        self.iteration += 1
        self.num_live_steps += self.config.num_rows * len(self.live_lanes)
        self.record(tensors)

    def collect(self) -> Rollout:
        """Return the next T steps of every environment."""
        return self._collector.collect(self._noise())

    def _noise(self) -> Tensor:
        """Return what decides the actions of this iteration, (L, R, …)."""
        keys = self._lanes.keys(rng.Stream.ACTION, self.iteration)
        return self.model.distribution.noise(keys, self.config.num_rows, self.config.weights_dtype)

    def advantages(self, rollout: Rollout) -> Advantages:
        """Return advantages and value targets, (T, L, N)."""
        terminated, truncated = rollout.terminated, rollout.truncated
        if not self.config.bootstrap_truncated:
            terminated = terminated | truncated
        return gae(
            rollout.rewards,
            rollout.values,
            rollout.next_values,
            terminated,
            truncated,
            gamma=self._lanes.gamma,
            gae_lambda=self._lanes.gae_lambda,
        )

    def update(self, rows: RolloutRows) -> UpdateDiagnostics:
        """Pass num_epochs times over ``rows``."""
        coefficients = self._lanes.coefficients(self.iteration)
        return self._compilation.update(rows, self._row_permutations(), coefficients)

    def _row_permutations(self) -> Tensor:
        """Return the orders of the rows in this iteration's epochs, (E, L, R)."""
        keys = self._lanes.keys(rng.Stream.SHUFFLE, self.iteration)
        every = torch.stack([rng.fold_in(keys, e) for e in range(self.config.num_epochs)])
        permutations = rng.permutation(every.flatten(), self.config.num_rows)  # (E * L, R)
        return permutations.unflatten(0, every.shape)

    def diagnose(
        self, rollout: Rollout, rows: RolloutRows, diagnostics: UpdateDiagnostics
    ) -> IterationTensors:
        """Return what the record needs, still on the device."""
        return IterationTensors(
            update=diagnostics,
            after=self._compilation.after_update(
                rows, self._lanes.coefficients(self.iteration).clip
            ),
            episodes=self._episodes.count(
                rollout.env_rewards, rollout.terminated | rollout.truncated
            ),
        )

    def record(self, tensors: IterationTensors) -> None:
        """Read the iteration back and hand one record per live lane on."""
        begin_s = time.perf_counter()
        iterations = {lane: self.lane_iteration(lane) for lane in self.live_lanes}
        records = self._recorder.records(tensors, iterations=iterations, shared=self._measure())
        for lane, record in records.items():
            if self._on_record is not None:
                schedule = schedule_metrics(self.configs[lane], record.iteration - 1)
                self._on_record(
                    lane, dataclasses.replace(record, metrics={**record.metrics, **schedule})
                )
        self.meters.clock.add("record", time.perf_counter() - begin_s)

    def _measure(self) -> dict[str, float]:
        """Return what is measured for the whole stack in this iteration."""
        if self.placement.is_cuda:
            torch.cuda.synchronize(self.placement.device)
        seconds = self.meters.clock.read()
        num_steps = self.config.num_rows * len(self.live_lanes)
        seconds["env"] = self._collector.env_s
        self.meters.clock.totals["env"] += self._collector.env_s
        self._collector.env_s = 0.0
        metrics = {f"time/{name}_s": value for name, value in seconds.items()}
        elapsed_s = metrics["time/elapsed_s"] = self.elapsed_s
        metrics["charts/SPS"] = self.num_live_steps / elapsed_s
        metrics["perf/SPS_rollout"] = num_steps / seconds["rollout"]
        metrics["perf/SPS_update"] = num_steps / seconds["update"]
        return metrics | self.meters.read()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the trainer was built."""
        return time.perf_counter() - self._start_s

    def phase_seconds(self) -> dict[str, float]:
        """Return the seconds spent so far in each phase; phases do not overlap.

        Stepping the environment is part of the rollout and is shown beside it, not within it.
        """
        seconds = dict(self.meters.clock.totals)
        env_s = seconds.pop("env", 0.0)
        seconds["rollout"] = seconds.get("rollout", 0.0) - env_s
        return {"env": env_s, **seconds}

    def history(self, lane: int) -> History:
        """Return a lane's curve so far."""
        return self._recorder.histories[lane]

    def diverged(self, lane: int) -> str | None:
        """Return the first number of a lane that was not finite; None while all is well."""
        return self._recorder.diverged[lane]
