"""Trains checked configs and leaves finished run folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppo_lab.config.run import Config
from ppo_lab.runner.group import RunGroup
from ppo_lab.runner.resume import check_resume
from ppo_lab.runner.run_record import RunOutput, Status
from ppo_lab.runner.stack import Stack
from ppo_lab.runner.stored import write_config
from ppo_lab.tracking import Progress
from ppo_lab.tracking.local import METRICS_FILE
from ppo_lab.training.acting import Policy
from ppo_lab.training.policy import BEST_FOLDER, load_policy
from ppo_lab.utils.errors import ConfigError

__all__ = ["RunOutput", "Status", "TrainedRun", "run_group", "run_in_folder", "train"]


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended, and its folder."""

    folder: Path
    summary: dict[str, Any]
    """Content of summary.json."""

    @property
    def status(self) -> str:
        """How it ended: ``finished``, or another value of ``Status``."""
        return str(self.summary["status"])

    def policy(self, *, best: bool = False) -> Policy:
        """Return the last policy, or the ``best`` of the evaluations; see ``load_policy``."""
        return load_policy(self.folder / BEST_FOLDER if best else self.folder)


def train(config: Config, folder: str | Path, *, resume: bool = False) -> TrainedRun:
    """Train one run, as ``python -m ppo_lab`` does.

    Args:
        config: From ``compose``. ``tracking=local`` sends nothing to W&B, and
            ``tracking.terminal=none`` prints nothing.
        folder: Folder of the run, which is made. ``play``, ``report`` and ``load_runs`` read it.
        resume: Go on with the run in ``folder`` from its newest checkpoint.

    Returns:
        The run. A run that fails does not raise: look at its ``status`` and ``summary["reason"]``.

    Raises:
        ConfigError: There is a run in ``folder`` already, or one that ``config`` cannot go on with.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run is saved and can be resumed.

    Example:
        >>> from ppo_lab import compose, train
        >>> words = ["network=tiny", "num_steps=32", "total_steps=256", "tracking=local"]
        >>> run = train(compose([*words, "tracking.terminal=none"]), "first")
        >>> run.status, run.summary["env_steps"]
        ('finished', 256)
    """
    folder = Path(folder).absolute()
    if resume:
        check_resume(folder, config)
    elif (folder / METRICS_FILE).exists():
        allowed = "holds a run; resume=True goes on with it, another folder begins a new one"
        raise ConfigError("folder", folder, allowed)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config, [])
    return TrainedRun(folder, run_in_folder(config, folder, overrides=[], resumes=resume))


def run_in_folder(
    config: Config,
    folder: Path,
    *,
    overrides: Sequence[str],
    resumes: bool = False,
) -> dict[str, Any]:
    """Train a checked config alone and return its summary; see ``run_group``.

    ``folder`` exists and holds no run, or one that ``resumes`` from its newest checkpoint if it has
    one; ``check_resume`` says whether the config may.
    """
    output = RunOutput(folder, overrides, resumes=resumes)
    (summary,) = run_group(RunGroup([config], [output]))
    return summary


def run_group(group: RunGroup, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train a group as one stack, and return its runs' summaries; ``progress`` replaces its line.

    An exception of the run becomes summaries of status ``failed`` or ``out_of_memory``, and its
    memory is freed, so that the next run in this process has all of it.

    Raises:
        Interrupted: Ctrl-C or SIGTERM has stopped the runs; their trackers are closed.
    """
    stack = Stack(len(group.configs), progress or Progress(group.configs[0].tracking.terminal))
    stack.queue.put(group)
    try:
        while stack.has_work:
            stack.step()
    finally:
        stack.close()
    return group.summaries
