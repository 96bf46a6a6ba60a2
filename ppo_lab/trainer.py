"""The training loop: collect, advantages, update, record, for a stack of lanes.

A lane is one config with one seed; ``python -m ppo_lab`` trains a stack of one.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, R = T * N, E = epochs.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo_lab import random
from ppo_lab.advantages import Advantages, gae
from ppo_lab.collect import Collector, policy_over_rollout
from ppo_lab.config import Config
from ppo_lab.diagnostics import ratio_diagnostics, ratio_histogram
from ppo_lab.envs.base import Env
from ppo_lab.episodes import EpisodeMeter
from ppo_lab.lanes import LaneTensors, check_stack
from ppo_lab.meters import Meters
from ppo_lab.networks import Initializer
from ppo_lab.outcome import History
from ppo_lab.placement import Placement
from ppo_lab.ppo import explained_variance, normalize_advantages
from ppo_lab.records import IterationTensors, Recorder
from ppo_lab.rollout import Rollout, RolloutRows, lane_rows
from ppo_lab.step_log import UpdateDiagnostics
from ppo_lab.tracking import Record
from ppo_lab.update import AdvantageNormalization, UpdatePlan, update

__all__ = ["LaneResult", "Trainer"]

_MIN_ROWS_PER_PASS = 4096  # forward passes without gradients are not split below this


@dataclass(frozen=True)
class LaneResult:
    """What became of one lane."""

    history: History
    diverged: str | None
    """The first number that was not finite, with its value; None for a run that ended well."""


class Trainer:
    """Trains L configs that differ in nothing but their lane keys, as one program."""

    def __init__(
        self,
        configs: Sequence[Config],
        on_record: Callable[[int, Record], None] | None = None,
    ) -> None:
        """Build environments, model and optimizer; ``on_record`` gets (lane, record)."""
        check_stack(configs)
        config = configs[0]
        self.config, self.configs, self._on_record = config, configs, on_record
        device = config.torch_device
        self.placement = self._build_placement(device)
        self.meters = Meters(self.placement, is_profiled=config.is_profiled)
        self.spec = config.check_env()
        torch.set_num_threads(config.choose_num_threads(self.spec))

        seeds = torch.tensor([c.seed for c in configs], dtype=torch.int64)
        initializer = Initializer(seeds, device, config.weights_dtype)
        self.model = config.memory.build_model(
            config.network, self.spec, initializer, config.compute_dtype
        )
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
        self._plan = UpdatePlan(
            config.num_minibatches,
            config.advantage_normalization,
            store=self._store,
            num_micro_batches=config.memory.num_micro_batches,
        )
        self._episodes = EpisodeMeter(len(configs), config.num_envs, device)
        self._recorder = Recorder(configs, self.placement, self.model.distribution.max_entropy)
        self._action_keys = random.lane_keys(seeds.to(device), random.Stream.ACTION)
        self._shuffle_keys = random.lane_keys(seeds.to(device), random.Stream.SHUFFLE)
        self._start_s = time.perf_counter()
        self.iteration = 0
        self.stopped: str | None = None
        """Why the run was told to end before its last step; None if it was not."""

    def _build_placement(self, device: torch.device) -> Placement:
        return Placement(device)

    def _build_env(self, seeds: Tensor) -> Env:
        return self.config.env.build(
            seeds=seeds,
            num_envs=self.config.num_envs,
            placement=self.placement,
            gamma=self._lanes.gamma,
            dtype=self.config.weights_dtype,
        )

    def run(self, should_stop: Callable[[Trainer], str | None] | None = None) -> list[LaneResult]:
        """Train until the steps are spent, every lane has diverged, or there is a reason to stop.

        ``should_stop`` is asked after every iteration.
        """
        try:
            while self._has_more_to_do():
                self.iterate()
                if should_stop is not None:
                    self.stopped = should_stop(self)
        finally:
            self.meters.close()
        lanes = zip(self._recorder.histories, self._recorder.diverged)
        return [LaneResult(history, diverged) for history, diverged in lanes]

    def iterate(self) -> None:
        """Collect, advantages, update, record; what it needed is free again when it returns."""
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
        self.record(tensors)

    def collect(self) -> Rollout:
        """Return the next T steps of every environment."""
        keys = random.fold_in(self._action_keys, self.iteration)
        noise = self.model.distribution.noise(keys, self.config.num_rows, self.config.weights_dtype)
        return self._collector.collect(noise)

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
        keys = random.fold_in(self._shuffle_keys, self.iteration)
        orders = torch.stack(
            [
                random.permutation(random.fold_in(keys, epoch), self.config.num_rows)
                for epoch in range(self.config.num_epochs)
            ]
        )  # (E, L, R)
        return update(
            self.model,
            self.optimizer,
            rows,
            orders,
            self._lanes.coefficients(self.iteration),
            self._plan,
        )

    def diagnose(
        self, rollout: Rollout, rows: RolloutRows, diagnostics: UpdateDiagnostics
    ) -> IterationTensors:
        """Return what the record needs, still on the device."""
        log_ratio, entropy = policy_over_rollout(self.model, rows, self._rows_per_pass, self._store)
        clip = self._lanes.coefficients(self.iteration).clip
        advantages = rows.advantages
        if self.config.advantage_normalization is not AdvantageNormalization.none:
            # The gradient saw them standardised, and their signs decide what the clip cuts.
            advantages = normalize_advantages(advantages)
        return IterationTensors(
            update=diagnostics,
            rollout_after=ratio_diagnostics(log_ratio, advantages, clip),
            entropy_after=entropy.mean(-1),
            ratio_counts=ratio_histogram(log_ratio),
            explained_variance=explained_variance(rows.values, rows.value_targets),
            advantages_std=rows.advantages.std(-1, correction=int(rows.advantages.shape[-1] > 1)),
            episodes=self._episodes.count(
                rollout.env_rewards, rollout.terminated | rollout.truncated
            ),
        )

    def record(self, tensors: IterationTensors) -> None:
        """Read the iteration back and hand one record per live lane on."""
        begin_s = time.perf_counter()
        was_live = [diverged is None for diverged in self._recorder.diverged]
        records = self._recorder.records(tensors, iteration=self.iteration, shared=self._measure())
        for lane, record in enumerate(records):
            if was_live[lane] and self._on_record is not None:
                schedule = self._lanes.scheduled(self.configs[lane], self.iteration - 1)
                self._on_record(
                    lane, dataclasses.replace(record, metrics={**record.metrics, **schedule})
                )
        self.meters.clock.add("record", time.perf_counter() - begin_s)

    def _measure(self) -> dict[str, float]:
        """Return what is measured for the whole stack in this iteration."""
        if self.placement.is_cuda:
            torch.cuda.synchronize(self.placement.device)
        seconds = self.meters.clock.read()
        num_steps = self.config.num_rows * len(self.configs)
        seconds["env"] = self._collector.env_s
        self.meters.clock.totals["env"] += self._collector.env_s
        self._collector.env_s = 0.0
        metrics = {f"time/{name}_s": value for name, value in seconds.items()}
        elapsed_s = metrics["time/elapsed_s"] = self.elapsed_s
        metrics["charts/SPS"] = self.iteration * num_steps / elapsed_s
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

    def _has_more_to_do(self) -> bool:
        is_live = any(diverged is None for diverged in self._recorder.diverged)
        return is_live and self.iteration < self.config.num_iterations and self.stopped is None
