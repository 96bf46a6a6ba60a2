"""A stack of lanes that is kept full: when runs end, waiting ones take over their lanes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ppo_lab.compiler.compilation import should_compile
from ppo_lab.devices.cuda_memory import is_out_of_memory, release_memory, vram_limit
from ppo_lab.devices.pcie import measure_bus
from ppo_lab.envs.time_limit import on_timeout
from ppo_lab.forecasting.budget import over_budget
from ppo_lab.forecasting.counting import counted_trainer
from ppo_lab.runner.group import RunGroup
from ppo_lab.runner.pace import CheckpointPace
from ppo_lab.runner.queue import GroupQueue
from ppo_lab.runner.run_record import RunRecorder, Status, one_line
from ppo_lab.runner.signals import Interrupted, StopSignals
from ppo_lab.tracking import Progress, Record, Terminal
from ppo_lab.training.precision import configure_torch
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.crash_points import crash_point
from ppo_lab.utils.errors import EnvironmentFault

__all__ = ["LaneUtilization", "Stack"]

log = logging.getLogger(__name__)


@dataclass
class LaneUtilization:
    """Share of lanes that trained while there were runs to fill them: until the last one began."""

    num_busy: int = 0
    num_all: int = 0
    """Lanes, summed over iterations; ``num_busy`` of them trained."""
    _latest: tuple[int, int] = (0, 0)

    def count(self, num_busy: int, num_all: int) -> None:
        """Count one iteration."""
        busy, every = self._latest
        self._latest = (busy + num_busy, every + num_all)

    def mark_run_start(self) -> None:
        """Count what came before: after the last run started nothing could fill its lanes."""
        self.num_busy, self.num_all = self._latest

    @property
    def busy_frac(self) -> float:
        """The share; 1 if no run started after the first iteration."""
        return self.num_busy / self.num_all if self.num_all else 1.0


class Stack:
    """Trains the run groups of its queue, as many at a time as there are lanes.

    When a stack of several groups fails, because of one of them or because of too many lanes for
    the memory, its groups run again in two halves. So a failure costs the other groups only time.
    """

    def __init__(self, max_lanes: int, progress: Progress | None = None) -> None:
        """Use at most ``max_lanes`` lanes, or one group's; show ``progress``, or nothing."""
        self.queue = GroupQueue(max_lanes)
        self.utilization = LaneUtilization()
        self._progress = progress or Progress(Terminal.none)
        self._running: list[RunGroup] = []
        self._trainer: Trainer | None = None
        self._limits = contextlib.ExitStack()
        self._recorders: dict[int, RunRecorder] = {}  # by lane
        self._signals, self._pace = StopSignals(), CheckpointPace(0.0)
        self._is_between = False  # iterations, so that runs can go on from here
        on_timeout(self._fail_before_exit)

    @property
    def has_work(self) -> bool:
        """Whether a group runs or waits."""
        return bool(self._running or self.queue.num_wanted)

    @property
    def num_free(self) -> int:
        """Free lanes of the trainer; the most that one may have if there is none yet."""
        busy = sum(len(group.lanes) for group in self._running)
        return (len(self._trainer.configs) if self._trainer else self.queue.max_lanes) - busy

    def step(self) -> None:
        """Fill free lanes, run one iteration, and finish the groups that have ended.

        A signal is granted after the iteration, a second one at once.

        Raises:
            Interrupted: A signal has stopped the runs; their trackers are closed.
        """
        has_trained = self._trainer is not None and self._trainer.iteration > 0
        with self._signals.noted(is_worthwhile=has_trained):
            try:
                self._fill()
                if self._trainer is not None and self._running:
                    self._iterate(self._trainer)
            except (Exception, SystemExit) as error:  # an environment may call sys.exit
                self._fail(error)
            except BaseException:
                self.close()
                raise
        if self._signals.number is not None:
            recorders = [recorder for group in self._running for recorder in group.recorders]
            self.close()
            is_resumable = all("checkpoint" in recorder.summary for recorder in recorders)
            raise Interrupted(self._signals.number, is_resumable=is_resumable)

    def abort(self, group: RunGroup) -> None:
        """End ``group`` between iterations: as interrupted if it runs, silently if it waits."""
        if group in self._running:
            self._interrupt(group, "stopped by the scheduler")
        self.queue.remove(group)

    def close(self) -> None:
        """Interrupt what runs, close the trainer, lift the memory limit; what waits still waits."""
        for group in list(self._running):
            self._interrupt(group, "stopped by a signal")
        trainer, self._trainer = self._trainer, None
        if trainer is None:
            return
        try:
            trainer.close()
        except (Exception, SystemExit):  # the runs' results are valid all the same
            log.exception("the environment did not close")
        self._limits.close()

    def _fill(self) -> None:
        """Start waiting groups in free lanes; build a trainer if there is none."""
        groups = self._next_groups()
        self._running += groups  # whatever goes wrong from here on finds them there
        groups = [group for group in groups if self._start(group)]
        if not groups:
            return
        self._is_between = False
        trainer = self._trainer
        num_lanes = len(trainer.configs) if trainer else self.queue.num_lanes(groups)
        taken = {lane for group in self._running for lane in group.lanes}
        free = iter([lane for lane in range(num_lanes) if lane not in taken])
        for group in groups:
            group.lanes = [next(free) for _ in group.configs]
        recorders = {n: r for group in groups for n, r in zip(group.lanes, group.recorders)}
        self._recorders.update(recorders)
        is_new = trainer is None
        if trainer is None:
            trainer = self._trainer = self._build(groups, num_lanes)
        else:
            trainer.replace_lanes({lane: r.config for lane, r in recorders.items()})
            for recorder in recorders.values():
                recorder.begin(trainer)
        self.utilization.mark_run_start()
        for group in groups:
            self._load(group, trainer, is_new=is_new)
        self._is_between = not is_new

    def _load(self, group: RunGroup, trainer: Trainer, *, is_new: bool) -> None:
        """Continue a group from its checkpoints; finish it if its runs had ended there."""
        for recorder in group.recorders:
            recorder.describe(trainer)
        try:
            group.load(trainer)
        except Exception as error:
            self._free(group)
            if is_new:
                group.fail(error)
            else:  # such as one that was not compiled, in a stack that is
                self.queue.put_again([group], num_parts=1)
                self._clear([group], error)
            return
        if group.checkpoints:
            trainer.retire_ended()
            group.save_ended(trainer)
            self._finish_if_ended(group, trainer)

    def _next_groups(self) -> list[RunGroup]:
        """Return the groups that start now; close a trainer that cannot train them."""
        is_idle = not self._running and self.queue.num_wanted
        if is_idle and not self.queue.can_reuse(self.num_free):
            self.close()
        return self.queue.take_first() if self._trainer is None else self.queue.take(self.num_free)

    def _start(self, group: RunGroup) -> bool:
        """Start a group's trackers; end it, and return False, if it cannot or must not train."""
        try:
            group.start(self._progress)
            excess = over_budget(group.configs[0])
        except Exception as error:
            self._running.remove(group)
            group.fail(error)
            return False
        if excess is not None:
            log.error(reason := str(excess))
            self._running.remove(group)
            group.end(Status.over_budget, reason)
            group.finish()
        return excess is None

    def _build(self, groups: Sequence[RunGroup], num_lanes: int) -> Trainer:
        """Return a trainer for ``groups``, whose further lanes are idle."""
        configs = [config for group in groups for config in group.configs]
        config, idle = configs[0], range(len(configs), num_lanes)
        if config.is_profiled and config.torch_device.type == "cuda":
            measure_bus(config.torch_device)  # its buffers might exceed the limit set next
        self._limits.enter_context(vram_limit(config.torch_device, config.vram_limit_gib))
        configure_torch(config)
        build = counted_trainer if config.is_profiled else Trainer
        planned_steps = max(group.planned_steps for group in groups)
        compiles = should_compile(config, num_lanes, planned_steps)
        if earlier := groups[0].checkpoints:  # numbers depend on both
            compiles = earlier[0].manifest["is_compiled"]
            if config.num_threads == "auto":
                torch.set_num_threads(earlier[0].manifest["num_threads"])
        trainer = build([*configs, *(config for _ in idle)], self._record, compiles=compiles)
        for lane in idle:
            trainer.retire_lane(lane)
        self._pace = CheckpointPace(config.checkpoint.every_s)
        return trainer

    def _record(self, lane: int, record: Record) -> None:
        assert self._trainer is not None
        self._recorders[lane].record(record, self._trainer.history(lane))
        crash_point("row_written")

    def _iterate(self, trainer: Trainer) -> None:
        self.utilization.count(len(trainer.live_lanes), len(trainer.configs))
        self._is_between = False
        trainer.iterate()
        self._is_between = True
        trainer.retire_ended()
        for group in list(self._running):
            group.save_ended(trainer)
            self._finish_if_ended(group, trainer)
        if self._running and self._pace.is_due:
            with self._pace.writing():
                for group in self._running:
                    group.save(trainer)

    def _finish_if_ended(self, group: RunGroup, trainer: Trainer) -> None:
        """Finish a group that has a reason to stop or whose runs have all ended."""
        try:
            reason = group.should_stop(trainer, group.lanes)
        except Exception as error:  # of whoever watches this group; the others go on
            group.measure(trainer, self.utilization.busy_frac, has_failed=True)
            self._free(group)
            group.fail(error)
            return
        if reason is None and not all(map(trainer.has_ended, group.lanes)):
            return
        group.conclude(trainer, reason)
        group.measure(trainer, self.utilization.busy_frac)
        self._free(group)
        group.finish()

    def _free(self, group: RunGroup) -> None:
        """Take a group out of its lanes; whatever ends it afterwards is its own affair."""
        self._running.remove(group)
        if self._trainer is not None:
            for lane in group.lanes:
                self._trainer.retire_lane(lane)

    def _interrupt(self, group: RunGroup, reason: str) -> None:
        if self._trainer is not None and group.lanes:
            if self._is_between:
                group.save(self._trainer)
            group.measure(self._trainer, self.utilization.busy_frac)
        self._free(group)
        group.end(Status.interrupted, reason)
        group.finish()

    def _fail(self, error: BaseException) -> None:
        """Fail the group to blame; schedule the others again, in halves if it is unknown."""
        others, self._running = self._running, []
        if not others:
            raise error
        if self._trainer is not None:
            for group in others:
                group.measure(self._trainer, self.utilization.busy_frac, has_failed=True)
        self.close()
        guilty = next((group for group in others if _is_guilty(group, others, error)), None)
        if guilty is not None:
            others.remove(guilty)
            self.queue.put_again(others, num_parts=1)
            self._clear(others, error)
            guilty.fail(error)
            return
        log.warning("a stack of %d failed and runs again in halves", len(others), exc_info=error)
        self.queue.put_again(others)
        if is_out_of_memory(error):
            self.queue.max_lanes = max(1, self.queue.max_lanes // 2)
        self._clear(others, error)
        release_memory(others[0].configs[0].torch_device, error)

    def _fail_before_exit(self, fault: EnvironmentFault) -> None:
        """Finish the group to blame for the end of the process; others leave their checkpoints."""
        for group in self._running:
            if _is_guilty(group, self._running, fault):
                group.end(Status.failed, str(fault), fault)
                group.finish()

    def _clear(self, groups: Sequence[RunGroup], error: BaseException) -> None:
        """Prepare ``groups`` for another attempt."""
        status = Status.out_of_memory if is_out_of_memory(error) else Status.failed
        for group in groups:
            group.end(status, f"{one_line(error)}; runs again beside fewer others")
            group.clear()


def _is_guilty(group: RunGroup, groups: Sequence[RunGroup], error: BaseException) -> bool:
    """Return whether ``error`` is certainly due to ``group`` of a stack's ``groups``."""
    is_its_lane = isinstance(error, EnvironmentFault) and error.lane in group.lanes
    return is_its_lane or len(groups) == 1
