"""Records one run of a stack: trackers, summary and saved policy."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from ppo_lab.config.run import Config
from ppo_lab.forecasting.summary import forecast_section, memory_section
from ppo_lab.runner.lock import lock_run_folder
from ppo_lab.runner.measured import Begin, facts, measured, num_parameters
from ppo_lab.runner.resume import comparable
from ppo_lab.runner.run_name import name_parts, network_name, run_name
from ppo_lab.tracking import Progress, Record, RunInfo, Tracker, cut_metrics
from ppo_lab.tracking.local import METRICS_FILE, SUMMARY_FILE
from ppo_lab.training.checkpoint import (
    Checkpoint,
    describe_run,
    remove_checkpoints,
    save_checkpoint,
)
from ppo_lab.training.evaluation import BestPolicy
from ppo_lab.training.policy import BEST_FOLDER, save_policy, write_policy
from ppo_lab.training.scores import History, policy_state
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.crash_points import crash_point
from ppo_lab.utils.errors import EnvironmentFault

__all__ = ["RunOutput", "RunRecorder", "Status", "one_line", "static_summary"]

log = logging.getLogger(__name__)


class Status(Enum):
    """How a run ended, from best to worst."""

    finished = "finished"
    pruned = "pruned"  # stopped before its last step
    diverged = "diverged"  # a loss or a gradient was not finite
    out_of_memory = "out_of_memory"  # the device's, or the host's
    over_budget = "over_budget"  # not started: the forecast exceeds vram_budget_gib
    failed = "failed"  # any other exception
    interrupted = "interrupted"  # Ctrl-C or a signal


@dataclass(frozen=True)
class RunOutput:
    """Folder of one run, and what its summary and its trackers are given."""

    folder: Path
    """An existing folder."""
    overrides: Sequence[str]
    group: str | None = None
    """The grid or study this run belongs to."""
    varying: Collection[str] | None = None
    """Keys that differ between the runs of the group, for its name; None: unknown."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Added to the summary, such as a trial's number."""
    run_id: str | None = None
    """Id of the run in trackers; None generates one."""
    job_type: str = "train"
    has_forecast: bool = False
    """Whether the summary holds the memory forecast even if the run is not profiled."""
    resumes: bool = False
    """Whether the folder may hold a run that was killed, to go on from its newest checkpoint."""


class RunRecorder:
    """Trackers, checkpoints and summary of one run.

    Speed, memory and time by phase are those of the whole stack while the run was in it; ``stack``
    in the summary gives its number of lanes.
    """

    def __init__(self, config: Config, output: RunOutput, progress: Progress) -> None:
        """Lock the run's folder, and build the trackers.

        Raises:
            ConfigError: Another process trains in the folder.
        """
        self._lock = lock_run_folder(output.folder)
        self.config, self.output = config, output
        self.tracker = Tracker(config.tracking, Path("outputs").resolve(), progress)
        self._is_shown = progress.is_shown
        self.summary = static_summary(config, output)
        self._begin = Begin(0.0, 0, {})
        self._start_s = time.perf_counter()
        self._run_id, self._settings = "", comparable(config)
        self._saved_best: BestPolicy | None = None
        self.earlier: Mapping[str, Any] = {}
        """Manifest of the checkpoint from which the run goes on; empty for a new run."""

    def start(self, attempt: int, checkpoint: Checkpoint | None) -> None:
        """Start the trackers of a new run, or of one that goes on from ``checkpoint``.

        A further ``attempt`` at a new run is another run in the trackers.
        """
        output = self.output
        if attempt > 1 or output.resumes:
            self._cut_records(checkpoint)
        if checkpoint is not None:
            self.earlier = checkpoint.manifest
            output = replace(output, run_id=self.earlier["run_id"])
            num_times = self.earlier.get("num_resumes", 0) + 1
            self.summary["resumed"] = {
                "iteration": self.earlier["iteration"], "num_times": num_times
            }  # fmt: skip
            self.summary["checkpoint"] = str(checkpoint.folder)
        elif attempt > 1 and output.run_id is not None:
            output = replace(output, run_id=f"{output.run_id}-{attempt}")
        resumed_at = self.earlier.get("iteration", 0)
        info = replace(_run_info(self.config, output), resumed_at=resumed_at)
        self.tracker.start(info)
        self._run_id = self.tracker.run_id or info.id
        if self.output.has_forecast or self.config.is_profiled:
            self.summary["memory"]["forecast"] = forecast_section(self.config)

    def _cut_records(self, checkpoint: Checkpoint | None) -> None:
        """Remove what an earlier attempt recorded after ``checkpoint``, or all of it."""
        crash_point("resume_before_cut")
        folder = self.output.folder
        (folder / SUMMARY_FILE).unlink(missing_ok=True)
        if checkpoint is None:
            (folder / METRICS_FILE).unlink(missing_ok=True)
            remove_checkpoints(folder)
        else:
            cut_metrics(folder, checkpoint.manifest["metrics_bytes"])
            remove_checkpoints(folder, keep=[checkpoint.state.numbers["iteration"]])
        crash_point("resume_after_cut")

    def describe(self, trainer: Trainer) -> None:
        """Add to the trackers' config what is known only with the trainer."""
        sizes = num_parameters(trainer.model)
        self.tracker.describe({"num_parameters": {**sizes, "total": sum(sizes.values())}})

    def begin(self, trainer: Trainer) -> None:
        """Note the stack's progress before this run."""
        self._begin = Begin(trainer.elapsed_s, trainer.num_live_steps, trainer.phase_seconds())

    def record(self, record: Record, history: History) -> None:
        """Send an iteration to the trackers, with the policy's state where it is shown."""
        if self._is_shown and (state := policy_state(history, self.config.env.score_range())):
            record = replace(record, state=state)
        self.tracker.record(record)

    def measure(self, trainer: Trainer, lane: int, busy_frac: float) -> None:
        """Add measurements; ``busy_frac`` is the share of the stack's lanes that trained."""
        self.summary.update(measured(self.config, trainer, lane, self._begin))
        if (num_lanes := len(trainer.configs)) > 1:
            self.summary["stack"] = {"num_lanes": num_lanes, "lane": lane, "busy_frac": busy_frac}
        self.summary["memory"] |= memory_section(trainer)

    def attempt(self, act: Callable[..., None], *args: object) -> None:
        """Call ``act``, one of this recorder's methods; an error ends this run only."""
        try:
            act(*args)
        except Exception as error:  # such as a full disk; the other runs of the stack go on
            log.exception("the run in %s could not be recorded", self.output.folder)
            self.end(Status.failed, one_line(error), error)

    def end(self, status: Status, reason: str | None, error: BaseException | None = None) -> None:
        """Set the status; ``error`` is what the run failed with."""
        self.summary.update(status=status.value, reason=reason)
        if error is not None:
            self.summary["error"] = type(error).__name__

    def conclude(self, trainer: Trainer, lane: int, stopped: str | None) -> None:
        """Set the status, and save the run unless it diverged; ``stopped`` is why if pruned."""
        diverged = trainer.history(lane).diverged
        if diverged is not None:
            self._save_best(trainer, lane)
            self.end(Status.diverged, diverged)
            return
        self.save_checkpoint(trainer, lane)
        self.save_policy(trainer, lane)
        self.end(Status.finished if stopped is None else Status.pruned, stopped)

    def save_policy(self, trainer: Trainer, lane: int) -> None:
        """Save the policy as it is, and the best one."""
        state, folder, spec = trainer.env.state_dict(), self.output.folder, trainer.spec
        save_policy(folder, self.config, trainer.model, state, spec=spec, lane=lane)
        self._save_best(trainer, lane)

    def _save_best(self, trainer: Trainer, lane: int) -> None:
        """Save the best policy of the evaluations so far, unless it is saved."""
        best = trainer.evaluator.best[lane]
        if best is not None and best is not self._saved_best:
            folder, model = self.output.folder / BEST_FOLDER, trainer.model
            write_policy(folder, self.config, model, best.tensors, spec=trainer.spec)
            self._saved_best = best

    def save_checkpoint(self, trainer: Trainer, lane: int) -> bool:
        """Write a checkpoint if the run can go on exactly from here; return whether it is there.

        A disk that is full leaves the one before it.
        """
        if not trainer.has_state(lane):
            return False
        try:
            position = self.tracker.sync()
            crash_point("rows_synced")
            state = trainer.lane_state(lane)
            manifest = describe_run(
                self.config,
                state,
                settings=self._settings,
                metrics_bytes=position,
                num_lanes=len(trainer.configs),
                num_resumes=self.summary.get("resumed", {}).get("num_times", 0),
                num_threads=torch.get_num_threads(),
                run_id=self._run_id,
                wall_time_s=self._wall_time_s,
            )
            self.summary["checkpoint"] = str(save_checkpoint(self.output.folder, state, manifest))
        except OSError as error:
            log.warning("%s: no checkpoint now: %s", self.output.folder, error)
            return False
        return True

    @property
    def _wall_time_s(self) -> float:
        earlier_s: float = self.earlier.get("wall_time_s", 0.0)
        return earlier_s + time.perf_counter() - self._start_s

    def finish(self) -> None:
        """Close the trackers; the summary must have a status."""
        self.summary["wall_time_s"] = self._wall_time_s
        is_well = self.summary["status"] in (Status.finished.value, Status.pruned.value)
        self.attempt(self.tracker.finish, self.summary, 0 if is_well else 1)
        self.summary |= self.tracker.notes
        if self.tracker.lost and is_well:
            lost = f"not all of the run's files could be written: {self.tracker.lost}"
            self.summary.update(status=Status.failed.value, reason=lost)
        crash_point("summary_written")
        self.release()

    def release(self) -> None:
        """Leave the folder to others."""
        self._lock.release()


def one_line(error: BaseException) -> str:
    """Return the error's name and the first line of its message; a fault's message alone."""
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r}) was called"
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else "(no message)"
    return first if isinstance(error, EnvironmentFault) else f"{type(error).__name__}: {first}"


def _run_info(config: Config, output: RunOutput) -> RunInfo:
    found, values = facts(config.torch_device), config.as_dict()
    network = {"name": network_name(config.network, output.overrides), **values["network"]}
    commit = found["git"].get("commit")
    tags = [config.env.id, config.memory.name, *([f"g{commit[:7]}"] if commit else [])]
    return RunInfo(
        folder=output.folder,
        id=output.run_id or "-".join([*name_parts(config), secrets.token_hex(8)]),
        name=run_name(config, output.overrides, output.varying),
        is_named=config.name != Config.name,
        group=output.group,
        tags=tuple(tag[:64] for tag in [*tags, *config.tracking.tags]),
        total_steps=config.num_counted_steps,
        config=values
        | {"network": network, "overrides": list(output.overrides), **found, **output.notes},
        job_type=output.job_type,
    )


def static_summary(config: Config, output: RunOutput) -> dict[str, Any]:
    """Return what is known before the first step; ``epsilon`` is absent without a clip."""
    epsilon = {} if config.epsilon is None else {"epsilon": config.epsilon}
    return {
        "env": config.env.id,
        "memory": {"strategy": config.memory.name},
        "clipped": config.epsilon is not None,
        "seed": config.seed,
        "name": config.name,
        "overrides": list(output.overrides),
        "folder": str(output.folder),
        **output.notes,
        **epsilon,
        **facts(config.torch_device),
    }
