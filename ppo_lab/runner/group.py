"""A group of runs that share a stack's lanes: one run, or the seeds of one trial."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppo_lab.config.lanes import stack_key
from ppo_lab.config.run import Config
from ppo_lab.devices.cuda_memory import is_out_of_memory, release_memory
from ppo_lab.forecasting.budget import resolve_memory
from ppo_lab.forecasting.summary import out_of_memory_line
from ppo_lab.runner.run_record import RunOutput, RunRecorder, Status, one_line, static_summary
from ppo_lab.tracking import Progress
from ppo_lab.training.checkpoint import Checkpoint, load_checkpoint
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.crash_points import crash_point
from ppo_lab.utils.errors import EnvironmentFault

__all__ = ["RunGroup", "newest_common"]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class RunGroup:
    """Runs that take lanes of a stack together and leave them together."""

    configs: Sequence[Config]
    """One per run; they must be able to share a stack."""
    outputs: Sequence[RunOutput]
    should_stop: Callable[[Trainer, Sequence[int]], str | None] = lambda *_: None
    """Called after every iteration with the trainer and the runs' lanes; a reason prunes them."""
    on_finish: Callable[[list[dict[str, Any]]], None] = lambda _: None
    """Called with the summaries when the runs have ended and are on disk."""
    planned_steps: int = 0
    """Environment steps of all groups of the study or grid, which decide whether compiling pays;
    0: those of ``configs``."""
    lanes: list[int] = field(default_factory=list)
    recorders: list[RunRecorder] = field(default_factory=list)
    """Of the current attempt, one per run; there is another attempt if the stack failed."""
    checkpoints: Sequence[Checkpoint] = ()
    """From which this attempt goes on, one per run; empty if it begins at the first step."""
    summaries: list[dict[str, Any]] = field(default_factory=list)
    """One per run, once the runs have ended."""
    _num_attempts: int = 0
    _ended: set[int] = field(default_factory=set)  # lanes whose runs have ended and are saved

    def __post_init__(self) -> None:
        """Resolve the memory strategies."""
        self.configs = [_resolved(config) for config in self.configs]
        self.planned_steps = self.planned_steps or sum(c.total_steps for c in self.configs)
        self.key = stack_key(self.configs[0])
        """Equal for groups that can share a stack."""

    def start(self, progress: Progress) -> None:
        """Build the recorders of another attempt and start their trackers.

        Runs of an earlier attempt go on from the newest checkpoint that all of them have.
        """
        self._num_attempts += 1
        self.recorders, self.checkpoints, self._ended = [], [], set()
        for config, output in zip(self.configs, self.outputs):
            self.recorders.append(RunRecorder(config, output, progress))
        if self._num_attempts > 1 or all(output.resumes for output in self.outputs):
            folders = [output.folder for output in self.outputs]
            self.checkpoints = newest_common(self.configs, folders)
        for recorder, found in itertools.zip_longest(self.recorders, self.checkpoints):
            recorder.start(self._num_attempts, found)

    def load(self, trainer: Trainer) -> None:
        """Continue the runs in their lanes from their checkpoints, if they have any."""
        for lane, checkpoint in zip(self.lanes, self.checkpoints):
            trainer.load_lane_state(lane, checkpoint.state)

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of every run that trains and save its policy."""
        for lane, recorder in zip(self.lanes, self.recorders):
            if lane not in self._ended and recorder.save_checkpoint(trainer, lane):
                crash_point("checkpoint_before_policy")
                recorder.save_policy(trainer, lane)

    def save_ended(self, trainer: Trainer) -> None:
        """Save the runs that have just ended: lanes of others, and so their environments, go on.

        Where only live steps count, the runs of a group need different numbers of iterations.
        """
        for lane, recorder in zip(self.lanes, self.recorders):
            if lane not in self._ended and trainer.has_ended(lane):
                self._ended.add(lane)
                recorder.attempt(recorder.conclude, trainer, lane, None)

    def measure(self, trainer: Trainer, busy_frac: float, *, has_failed: bool = False) -> None:
        """Add measurements to the summaries, and the phase that failed.

        ``busy_frac`` is the share of the stack's lanes that trained.
        """
        for lane, recorder in zip(self.lanes, self.recorders):
            if has_failed:
                phase = trainer.meters.running_phase or "record"
                recorder.summary["stopped_in"] = phase
                # In a rollout the weights are those of the last update.
                if phase == "rollout" and lane not in self._ended:
                    recorder.attempt(recorder.save_policy, trainer, lane)
            recorder.attempt(recorder.measure, trainer, lane, busy_frac)

    def conclude(self, trainer: Trainer, stopped: str | None) -> None:
        """Save every policy and set every status; ``stopped`` is the reason if pruned."""
        self.save_ended(trainer)
        for lane, recorder in zip(self.lanes, self.recorders):
            if lane not in self._ended:
                recorder.attempt(recorder.conclude, trainer, lane, stopped)
        crash_point("policy_before_summary")

    def end(self, status: Status, reason: str, error: BaseException | None = None) -> None:
        """Set the status of all runs; ``error`` is what they failed with."""
        for recorder in self.recorders:
            recorder.end(status, reason, error)

    def finish(self) -> None:
        """Close the trackers and pass the summaries on."""
        for recorder in self.recorders:
            recorder.finish()
        self.summaries = [recorder.summary for recorder in self.recorders]
        self._pass_on()

    def _pass_on(self) -> None:
        try:
            self.on_finish(self.summaries)
        except Exception:  # the runs themselves have ended as their summaries say
            log.exception("what follows the end of %s failed", self.outputs[0].folder)

    def clear(self) -> None:
        """Close the trackers of a failed attempt; the next one goes on from its checkpoints."""
        for recorder in self.recorders:
            recorder.finish()
        self.lanes = []

    def fail(self, error: BaseException) -> None:
        """Log ``error``, free its memory, and finish as ``failed`` or ``out_of_memory``."""
        is_full, reason = is_out_of_memory(error), one_line(error)
        is_explained = is_full or isinstance(error, EnvironmentFault)  # better than by the frames
        log.log(logging.DEBUG if is_explained else logging.ERROR, "the run failed", exc_info=error)
        config = self.configs[0]
        try:
            release_memory(config.torch_device, error)
            if is_full and self.recorders:
                reason = out_of_memory_line(config, error, self.recorders[0].summary)
        except Exception:  # such as CUDA's, which fails from its first error on
            log.exception("the memory of the failed run could not be released")
        if is_explained:
            log.error(reason)
        status = Status.out_of_memory if is_full else Status.failed
        if len(self.recorders) == len(self.configs):
            self.end(status, reason, error)
            self.finish()
            return
        for recorder in self.recorders:
            recorder.release()
        ending = {"status": status.value, "reason": reason}  # in no file: the folder is not ours
        self.summaries = [static_summary(*run) | ending for run in zip(self.configs, self.outputs)]
        self._pass_on()


def newest_common(configs: Sequence[Config], folders: Sequence[Path]) -> Sequence[Checkpoint]:
    """Return a checkpoint of each run from which they go on together; none if one has none.

    Of a run that has ended it is the last, of others of the newest iteration that all have.
    """
    found = [load_checkpoint(folder) for folder in folders]
    while True:
        checkpoints = [checkpoint for checkpoint in found if checkpoint is not None]
        if len(checkpoints) < len(folders):
            return ()
        is_last = [_is_last(checkpoint, config) for checkpoint, config in zip(checkpoints, configs)]
        left = [c.state.numbers["iteration"] for c, last in zip(checkpoints, is_last) if not last]
        if len(set(left)) <= 1:
            for checkpoint in checkpoints:
                checkpoint.warn()
            return checkpoints
        found = [
            checkpoint if last else load_checkpoint(folder, at_most=min(left))
            for checkpoint, last, folder in zip(checkpoints, is_last, folders)
        ]


def _is_last(checkpoint: Checkpoint, config: Config) -> bool:
    num_steps: int = checkpoint.manifest["env_steps"]
    return num_steps >= config.num_counted_steps


def _resolved(config: Config) -> Config:
    resolved = resolve_memory(config)
    if resolved.memory.name != config.memory.name:
        log.info("memory=%s is %s here", config.memory.name, resolved.memory.name)
    return resolved
