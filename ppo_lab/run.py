"""One run from a checked config to a finished folder: trackers, training, summary, saved policy."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from ppo_lab.budget import over_budget, resolve_memory
from ppo_lab.bus import measure_bus
from ppo_lab.config import Config
from ppo_lab.counted import CountedTrainer
from ppo_lab.envs.base import Env
from ppo_lab.memory_summary import (
    device_section,
    forecast_section,
    memory_section,
    out_of_memory_line,
)
from ppo_lab.networks import ActorCritic
from ppo_lab.outcome import History, area_under_curve, has_collapsed, is_dead
from ppo_lab.policy import save_policy
from ppo_lab.tracking import Progress, RunInfo, Tracker
from ppo_lab.trainer import LaneResult, Trainer
from ppo_lab.versions import git_state, machine, versions
from ppo_lab.vram import is_out_of_memory, release_memory, vram_limit

__all__ = ["Destination", "Status", "run_in_folder", "run_stack"]

log = logging.getLogger(__name__)


class Status(Enum):
    """How a run ended."""

    finished = "finished"
    pruned = "pruned"  # told to end before its last step
    diverged = "diverged"  # a loss or a gradient was not finite
    out_of_memory = "out_of_memory"  # the device's, or the host's
    over_budget = "over_budget"  # not started: its forecast is above vram_budget_gib
    failed = "failed"  # something else raised
    interrupted = "interrupted"  # Ctrl-C or a signal


@dataclass(frozen=True)
class Destination:
    """Where one lane of a stack leaves its results, and what is noted beside them."""

    folder: Path
    """Exists already."""
    overrides: Sequence[str]
    group: str | None = None
    """The grid or study this run belongs to."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Added to the summary, such as a trial's number."""
    run_id: str | None = None
    """What trackers know the run by; None makes one up."""
    job_type: str = "train"


def run_in_folder(
    config: Config, folder: Path, *, overrides: Sequence[str], group: str | None = None
) -> dict[str, Any]:
    """Train ``config`` alone; see ``run_stack``."""
    (summary,) = run_stack([config], [Destination(folder, overrides, group)])
    return summary


def run_stack(
    configs: Sequence[Config],
    destinations: Sequence[Destination],
    should_stop: Callable[[Trainer], str | None] | None = None,
    *,
    is_forecast: bool = False,
) -> list[dict[str, Any]]:
    """Train ``configs`` as one stack, leave each lane in its folder, and return the summaries.

    ``should_stop`` is asked after every iteration; a reason it gives ends the run with status
    ``pruned``. With ``is_forecast`` the summaries hold the forecast even where nothing is profiled.
    An exception of the run becomes summaries of status ``failed`` or ``out_of_memory``; Ctrl-C and
    SystemExit are raised again once the trackers are closed. The memory of a run that failed is
    free again on return, so that the next one in this process has all of it.
    """
    begin_s = time.perf_counter()
    asked = configs[0].memory.name
    configs = [resolve_memory(config) for config in configs]
    config = configs[0]
    if config.memory.name != asked:
        log.info("memory=%s is %s here", asked, config.memory.name)
    device = config.torch_device
    if config.is_profiled and device.type == "cuda":
        measure_bus(device)  # before a limit that its buffers might not fit in
    facts = {"versions": versions(), "git": git_state(), "machine": machine(device)}
    progress = Progress(config.tracking.terminal)
    outputs = Path("outputs").resolve()
    lanes = [
        _Lane(c, to, Tracker(c.tracking, outputs, progress), _static_summary(c, to, facts))
        for c, to in zip(configs, destinations)
    ]
    try:
        for lane in lanes:
            lane.tracker.start(_run_info(lane.config, lane.destination, facts))
        if is_forecast or config.is_profiled:
            planned = forecast_section(config)
            for lane in lanes:
                lane.summary["memory"]["forecast"] = planned
        if reason := over_budget(config):
            log.error(reason)
            _end(lanes, Status.over_budget, reason)
        else:
            with vram_limit(device, config.vram_limit_gib):
                _train(lanes, should_stop)
    except Exception as error:
        _note_failure(lanes, error)
    except BaseException:
        _end(lanes, Status.interrupted, "stopped by a signal")
        raise
    finally:
        for lane in lanes:
            lane.finish(time.perf_counter() - begin_s)
    return [lane.summary for lane in lanes]


@dataclass(frozen=True)
class _Lane:
    config: Config
    destination: Destination
    tracker: Tracker
    summary: dict[str, Any]

    def finish(self, wall_time_s: float) -> None:
        self.summary["wall_time_s"] = wall_time_s
        is_well = self.summary["status"] in (Status.finished.value, Status.pruned.value)
        self.tracker.finish(self.summary, exit_code=0 if is_well else 1)
        if self.tracker.link:
            self.summary["wandb"] = self.tracker.link


def _train(lanes: Sequence[_Lane], should_stop: Callable[[Trainer], str | None] | None) -> None:
    """Train and save the policies; add to the summaries what came of it, as far as it came."""
    kind = CountedTrainer if lanes[0].config.is_profiled else Trainer
    trainer = kind(
        [lane.config for lane in lanes],
        on_record=lambda index, record: lanes[index].tracker.record(record),
    )
    try:
        stopped = _run(trainer, should_stop)
        for index, lane in enumerate(lanes):
            result = trainer.result(index)
            if result.diverged is None:  # a policy of NaNs is no policy
                state = trainer.env.state_dict()
                save_policy(lane.destination.folder, lane.config, trainer.model, state, lane=index)
            lane.summary.update(_ending(result, stopped))
    except Exception:
        for lane in lanes:
            lane.summary["stopped_in"] = trainer.meters.running_phase or "record"
        raise
    finally:
        try:
            for index, lane in enumerate(lanes):
                lane.summary.update(_measured(lane.config, trainer, index))
                lane.summary["memory"] |= memory_section(trainer)
        finally:
            _close(trainer.env)


def _run(trainer: Trainer, should_stop: Callable[[Trainer], str | None] | None) -> str | None:
    """Train until every lane has ended or there is a reason to stop, which is returned."""
    stopped: str | None = None
    try:
        while trainer.live_lanes and stopped is None:
            trainer.iterate()
            for lane in filter(trainer.has_ended, trainer.live_lanes):
                trainer.retire_lane(lane)
            stopped = None if should_stop is None else should_stop(trainer)
    finally:
        trainer.meters.close()
    return stopped


def _note_failure(lanes: Sequence[_Lane], error: Exception) -> None:
    """Log what ended a run, free its memory, and put status and reason into the summaries."""
    is_full = is_out_of_memory(error)
    if is_full:
        log.debug("out of memory", exc_info=error)  # where says little; the line below says more
    else:
        log.exception("the run failed")
    config = lanes[0].config
    release_memory(config.torch_device, error)
    if not is_full:
        _end(lanes, Status.failed, _one_line(error))
        return
    reason = out_of_memory_line(config, error, lanes[0].summary)
    log.error(reason)
    _end(lanes, Status.out_of_memory, reason)


def _end(lanes: Sequence[_Lane], status: Status, reason: str) -> None:
    for lane in lanes:
        lane.summary.update(status=status.value, reason=reason)


def _close(env: Env) -> None:
    """Close ``env``; a failure to is logged, the run's result stands."""
    try:
        env.close()
    except Exception:
        log.exception("the environment did not close")


def _run_info(config: Config, destination: Destination, facts: dict[str, Any]) -> RunInfo:
    env = re.sub(r"[^A-Za-z0-9._=-]", "-", config.env.id)[:24]
    parts = [env, config.memory.name, f"eps{config.epsilon_label}", f"s{config.seed}"]
    commit = facts["git"].get("commit")
    tags = [config.env.id, config.memory.name, *([f"g{commit[:7]}"] if commit else [])]
    return RunInfo(
        folder=destination.folder,
        id=destination.run_id or "-".join([*parts[:3], parts[3][:12], secrets.token_hex(2)])[:64],
        name="__".join([config.env.id, *parts[1:]]),
        group=config.tracking.group or destination.group,
        tags=tuple(tag[:64] for tag in [*tags, *config.tracking.tags]),
        total_steps=config.num_iterations * config.num_rows,
        config=config.as_dict()
        | {"overrides": list(destination.overrides)}
        | facts
        | dict(destination.notes),
        job_type=destination.job_type,
    )


def _static_summary(
    config: Config, destination: Destination, facts: dict[str, Any]
) -> dict[str, Any]:
    """Return what is known before the first step; ``epsilon`` is absent when there is no clip."""
    summary = {
        "env": config.env.id,
        "memory": {"strategy": config.memory.name},
        "clipped": config.epsilon is not None,
        "seed": config.seed,
        "name": config.name,
        "overrides": list(destination.overrides),
        "folder": str(destination.folder),
        **destination.notes,
    }
    if config.epsilon is not None:
        summary["epsilon"] = config.epsilon
    return summary | facts


def _ending(result: LaneResult, stopped: str | None) -> dict[str, Any]:
    if result.diverged is not None:
        return {"status": Status.diverged.value, "reason": result.diverged}
    if stopped is not None:
        return {"status": Status.pruned.value, "reason": stopped}
    return {"status": Status.finished.value, "reason": None}


def _measured(config: Config, trainer: Trainer, lane: int) -> dict[str, Any]:
    """Return what a lane and its stack measured, as far as they came."""
    trainer.meters.clock.read()
    history = trainer.history(lane)
    num_steps = trainer.iteration * config.num_rows
    measured = _scores(config, history) | {
        "env_steps": num_steps,
        "num_episodes": history.num_episodes,
        "num_parameters": _num_parameters(trainer.model),
        "time": {f"{name}_s": seconds for name, seconds in trainer.phase_seconds().items()},
        # Of the whole stack, as the peaks of memory are.
        "env_steps_per_s": num_steps * len(trainer.configs) / max(trainer.elapsed_s, 1e-9),
    }
    if trainer.placement.is_cuda or config.is_profiled:
        measured |= device_section(trainer)
    return measured


def _scores(config: Config, history: History) -> dict[str, Any]:
    scores: dict[str, Any] = {
        "final_return": history.final_return,
        "best_return": history.best_return,
        "auc_return": area_under_curve(history.steps, history.returns),
        "collapsed": None,
        "dead": None,
    }
    score_range = config.env.score_range()
    if score_range is not None:
        random_return, target_return = score_range
        scores["collapsed"] = has_collapsed(
            history.returns, random_return=random_return, target_return=target_return
        )
        scores["dead"] = is_dead(
            history.returns, history.entropy_fracs, history.kls, random_return=random_return
        )
    return scores


def _num_parameters(model: ActorCritic) -> dict[str, int]:
    """Return one lane's parameters by group: actor, critic and, where shared, trunk."""
    return {
        name: sum(p.numel() // p.shape[0] for p in parameters)
        for name, parameters in model.groups().items()
    }


def _one_line(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else '(no message)'}"
