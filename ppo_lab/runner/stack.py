"""A stack that stays full: runs take the lanes of one program, and others follow when they end.

Between iterations the lanes of entries that have ended are given to the next ones that the same
program can train.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ppo_lab.devices.cuda_memory import is_out_of_memory, release_memory, vram_limit
from ppo_lab.devices.pcie import measure_bus
from ppo_lab.forecast.budget import over_budget
from ppo_lab.forecast.counting_trainer import CountedTrainer
from ppo_lab.runner.entry import GroupView, RunGroup, Running, one_line
from ppo_lab.runner.run_record import RunRecorder, Status
from ppo_lab.tracking import Progress, Record, Terminal
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.provenance import git_state, machine, versions

__all__ = ["LaneUtilization", "Stack"]

log = logging.getLogger(__name__)


@dataclass
class LaneUtilization:
    """The share of lanes that trained, up to the last time that a run began.

    After that there was nothing left to fill them with.
    """

    num_busy: int = 0
    num_all: int = 0
    """Lanes, summed over iterations; ``num_busy`` of them trained."""
    _latest: tuple[int, int] = (0, 0)

    def count(self, num_busy: int, num_all: int) -> None:
        """Count one iteration."""
        busy, every = self._latest
        self._latest = (busy + num_busy, every + num_all)

    def begin(self) -> None:
        """Say that a run begins."""
        self.num_busy, self.num_all = self._latest

    @property
    def busy_frac(self) -> float:
        """The share; 1 where no run began after the first iteration."""
        return self.num_busy / self.num_all if self.num_all else 1.0


class Stack:
    """Trains entries, as many at a time as there are lanes; see the module.

    A failure may be one entry's alone, or that of too many lanes for the memory. It costs the
    others nothing but time: the entries of a stack that failed run again in two halves.
    """

    def __init__(self, max_lanes: int, style: Terminal = Terminal.none) -> None:
        """Hold at most ``max_lanes``, or one entry; ``style`` is how the terminal shows runs."""
        self.occupancy = LaneUtilization()
        self.num_more: int | None = None
        """Most runs that may still come beside those that wait; None for any number."""
        self._max_lanes, self._progress = max_lanes, Progress(style)
        self._waiting: deque[RunGroup] = deque()
        self._halves: deque[list[RunGroup]] = deque()
        self._running: list[Running] = []
        self._trainer: Trainer | None = None
        self._key: str | None = None
        """Of the entries that the program can train; None for one that takes no others."""
        self._limits = contextlib.ExitStack()
        self._recorded: dict[int, RunRecorder] = {}
        """By lane."""

    @property
    def has_work(self) -> bool:
        """Whether an entry runs or waits."""
        return bool(self._running or self._waiting or self._halves)

    @property
    def num_wanted(self) -> int:
        """Lanes that the waiting entries will take."""
        waiting = itertools.chain(self._waiting, *self._halves)
        return sum(len(entry.configs) for entry in waiting)

    @property
    def num_free(self) -> int:
        """Lanes that no entry has; where there is no program, all that one may have."""
        busy = sum(len(running.lanes) for running in self._running)
        return (len(self._trainer.configs) if self._trainer else self._max_lanes) - busy

    def put(self, entry: RunGroup) -> None:
        """Let ``entry`` wait for lanes."""
        self._waiting.append(entry)

    def step(self) -> None:
        """Fill the free lanes, go through one iteration, end the entries that have ended.

        Ctrl-C and SystemExit are raised again once the trackers of all runs are closed.
        """
        try:
            self._fill()
            if self._trainer is not None and self._running:
                self._iterate(self._trainer)
        except Exception as error:
            self._fail(error)
        except BaseException:
            for running in self._running:
                self._interrupt(running)
            self.close()
            raise

    def abort(self, entry: RunGroup) -> None:
        """End ``entry`` between iterations: as interrupted if it runs, without a trace if not."""
        for running in [r for r in self._running if r.entry is entry]:
            self._interrupt(running)
            self._free(running)
        self._waiting = deque(other for other in self._waiting if other is not entry)
        halves = ([other for other in half if other is not entry] for half in self._halves)
        self._halves = deque(half for half in halves if half)

    def close(self) -> None:
        """Free what the program holds."""
        trainer, self._trainer, self._running = self._trainer, None, []
        if trainer is None:
            return
        trainer.meters.close()
        try:
            trainer.env.close()
        except Exception:  # the runs' results stand
            log.exception("the environment did not close")
        self._limits.close()

    def _fill(self) -> None:
        """Give free lanes to entries that wait, and build a program for them if there is none."""
        entries = [entry for entry in self._take() if not self._is_over_budget(entry)]
        if not entries:
            return
        num_lanes = len(self._trainer.configs) if self._trainer else self._width(entries)
        taken = {lane for running in self._running for lane in running.lanes}
        free = iter([lane for lane in range(num_lanes) if lane not in taken])
        begun = []
        for entry in entries:
            runs = self._runs_of(entry)
            begun.append(Running(entry, [next(free) for _ in runs], runs))
        self._running += begun
        for running in begun:
            running.start()
        self._give_lanes(begun, num_lanes)
        self.occupancy.begin()

    def _take(self) -> list[RunGroup]:
        """Return the entries that begin now; without running ones, let go of their program."""
        if self._running and self._key is None:
            return []
        if not self._running and self.num_wanted and not self._suits_next():
            self.close()
        if self._trainer is None and self._halves:
            self._key = None
            return self._halves.popleft()
        if self._trainer is None and self._waiting:
            first = self._waiting[0]
            can_refill = first.configs[0].memory.max_lanes is None
            self._key = first.key if can_refill else None
            if not can_refill:
                return [self._waiting.popleft()]
        room = self._room()
        chosen = []
        for entry in [e for e in self._waiting if e.key == self._key]:
            room -= len(entry.configs)
            if room < 0:  # those behind it would keep it waiting
                break
            chosen.append(entry)
            self._waiting.remove(entry)
        return chosen

    def _suits_next(self) -> bool:
        """Return whether the program can train the entry that begins next."""
        if self._halves or self._key is None or self._trainer is None:
            return False
        ours = [entry for entry in self._waiting if entry.key == self._key]
        return bool(ours) and len(ours[0].configs) <= len(self._trainer.configs)

    def _room(self) -> int:
        """Return the lanes that are free; a new program has room for one entry at least."""
        if self._trainer is not None:
            return self.num_free
        ours = (len(entry.configs) for entry in self._waiting if entry.key == self._key)
        return max(self._max_lanes, next(ours, 0))

    def _width(self, entries: Sequence[RunGroup]) -> int:
        """Return the lanes of a new program: whole entries, as many as it may ever hold.

        Those that come are likely to be of the last program that was asked for.
        """
        needed = sum(len(entry.configs) for entry in entries)
        is_last = all(entry.key == self._key for entry in self._waiting)
        if self._key is None or not is_last:
            return needed
        size = len(entries[0].configs)
        widest = self._max_lanes - self._max_lanes % size
        if self.num_more is not None:
            widest = min(widest, needed + self.num_more)
        return max(needed, widest)

    def _is_over_budget(self, entry: RunGroup) -> bool:
        """End an entry whose forecast is above its budget, and return whether it is."""
        if (excess := over_budget(entry.configs[0])) is None:
            return False
        reason = str(excess)
        log.error(reason)
        refused = Running(entry, [], self._runs_of(entry))
        refused.start()
        refused.end(Status.over_budget, reason)
        refused.finish()
        return True

    def _runs_of(self, entry: RunGroup) -> list[RunRecorder]:
        facts = _facts(entry.configs[0].torch_device)
        pairs = zip(entry.configs, entry.destinations)
        entry.num_attempts += 1
        attempt = entry.num_attempts
        return [RunRecorder(config, to, self._progress, facts, attempt) for config, to in pairs]

    def _give_lanes(self, begun: Sequence[Running], num_lanes: int) -> None:
        """Let entries begin in the lanes they were given."""
        pairs = [pair for running in begun for pair in zip(running.lanes, running.runs)]
        self._recorded.update(pairs)
        if self._trainer is not None:
            self._trainer.replace_lanes({lane: run.config for lane, run in pairs})
            for _, run in pairs:
                run.begin(self._trainer)
            return
        config = begun[0].runs[0].config
        if config.is_profiled and config.torch_device.type == "cuda":
            measure_bus(config.torch_device)  # before a limit that its buffers might not fit in
        self._limits.enter_context(vram_limit(config.torch_device, config.vram_limit_gib))
        configs = [run.config for _, run in pairs]
        idle = range(len(configs), num_lanes)
        kind = CountedTrainer if config.is_profiled else Trainer
        self._trainer = kind(
            [*configs, *(config for _ in idle)],
            on_record=self._record,
            planned_steps=max(running.entry.planned_steps for running in begun),
        )
        for lane in idle:
            self._trainer.retire_lane(lane)

    def _record(self, lane: int, record: Record) -> None:
        self._recorded[lane].tracker.record(record)

    def _iterate(self, trainer: Trainer) -> None:
        self.occupancy.count(len(trainer.live_lanes), len(trainer.configs))
        trainer.iterate()
        for running in list(self._running):
            try:
                self._look_after(running, trainer)
            except Exception as error:  # of this entry alone: what it reports or saves
                running.note_phase(trainer)
                running.measure(trainer, self.occupancy.busy_frac)
                self._free(running)
                running.fail(error)

    def _look_after(self, running: Running, trainer: Trainer) -> None:
        """End an entry whose lanes have ended, or that has a reason to stop."""
        for lane in running.lanes:
            if trainer.has_ended(lane):
                trainer.retire_lane(lane)
        reason = running.entry.should_stop(GroupView(trainer, running.lanes))
        if reason is None and not all(map(trainer.has_ended, running.lanes)):
            return
        running.conclude(trainer, reason)
        running.measure(trainer, self.occupancy.busy_frac)
        self._free(running)
        running.finish()

    def _free(self, running: Running) -> None:
        self._running.remove(running)
        if self._trainer is not None:
            for lane in running.lanes:
                self._trainer.retire_lane(lane)

    def _interrupt(self, running: Running) -> None:
        running.measure(self._trainer, self.occupancy.busy_frac)
        running.end(Status.interrupted, "stopped by a signal")
        running.finish()

    def _fail(self, error: Exception) -> None:
        """End the one entry that failed; of several let each half run again by itself."""
        failed = list(self._running)
        if not failed:
            raise error
        for running in failed:
            running.note_phase(self._trainer)
            running.measure(self._trainer, self.occupancy.busy_frac)
        self.close()
        if len(failed) == 1:
            failed[0].fail(error)
            return
        is_full, line = is_out_of_memory(error), one_line(error)
        log.warning("a stack of %d failed and runs again in halves", len(failed), exc_info=error)
        release_memory(failed[0].entry.configs[0].torch_device, error)
        for running in failed:
            status = Status.out_of_memory if is_full else Status.failed
            running.end(status, f"{line}; runs again beside fewer others")
            running.clear()
        if is_full:
            self._max_lanes = max(1, self._max_lanes // 2)
        middle = (len(failed) + 1) // 2
        for part in (failed[:middle], failed[middle:]):
            self._halves.append([running.entry for running in part])


@functools.cache
def _facts(device: torch.device) -> dict[str, Any]:
    """Return what is known of this process's runs beforehand."""
    return {"versions": versions(), "git": git_state(), "machine": machine(device)}
