"""One run from a checked config to a finished folder: trackers, training, summary, saved policy."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Sequence
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

__all__ = ["Status", "run_in_folder"]

log = logging.getLogger(__name__)


class Status(Enum):
    """How a run ended."""

    finished = "finished"
    diverged = "diverged"  # a loss or a gradient was not finite
    out_of_memory = "out_of_memory"  # the device's, or the host's
    over_budget = "over_budget"  # not started: its forecast is above vram_budget_gib
    failed = "failed"  # something else raised
    interrupted = "interrupted"  # Ctrl-C or a signal


def run_in_folder(
    config: Config, folder: Path, *, overrides: Sequence[str], group: str | None = None
) -> dict[str, Any]:
    """Train ``config``, leave everything in ``folder`` (which exists), and return the summary.

    An exception of the run becomes a summary of status ``failed`` or ``out_of_memory``; Ctrl-C and
    SystemExit are raised again once the trackers are closed. The memory of a run that failed is
    free again on return, so that the next one in this process has all of it.
    """
    begin_s = time.perf_counter()
    asked, config = config.memory.name, resolve_memory(config)
    if config.memory.name != asked:
        log.info("memory=%s is %s here", asked, config.memory.name)
    device = config.torch_device
    if config.is_profiled and device.type == "cuda":
        measure_bus(device)  # before a limit that its buffers might not fit in
    facts = {"versions": versions(), "git": git_state(), "machine": machine(config.torch_device)}
    info = _run_info(config, folder, overrides, group, facts)
    tracker = Tracker(
        config.tracking, Path("outputs").resolve(), Progress(config.tracking.terminal)
    )
    summary = _static_summary(config, folder, overrides, facts)
    try:
        tracker.start(info)
        if config.is_profiled:
            summary["memory"]["forecast"] = forecast_section(config)
        if reason := over_budget(config):
            log.error(reason)
            summary |= {"status": Status.over_budget.value, "reason": reason}
        else:
            with vram_limit(device, config.vram_limit_gib):
                _train(config, folder, tracker, summary)
    except Exception as error:
        summary |= _failure(config, error, summary)
    except BaseException:
        summary |= {"status": Status.interrupted.value, "reason": "stopped by a signal"}
        raise
    finally:
        summary["wall_time_s"] = time.perf_counter() - begin_s
        is_well = summary["status"] == Status.finished.value
        tracker.finish(summary, exit_code=0 if is_well else 1)
        summary |= {"wandb": tracker.link} if tracker.link else {}
    return summary


def _train(config: Config, folder: Path, tracker: Tracker, summary: dict[str, Any]) -> None:
    """Train and save the policy; add to ``summary`` what came of it, as far as it came."""
    kind = CountedTrainer if config.is_profiled else Trainer
    trainer = kind([config], on_record=lambda _, record: tracker.record(record))
    try:
        (result,) = trainer.run()
        if result.diverged is None:  # a policy of NaNs is no policy
            save_policy(folder, config, trainer.model, trainer.env.state_dict())
        summary |= _ending(result)
    except Exception:
        summary["stopped_in"] = trainer.meters.running_phase or "record"
        raise
    finally:
        try:
            summary |= _measured(config, trainer)
            summary["memory"] |= memory_section(trainer)
        finally:
            _close(trainer.env)


def _failure(config: Config, error: Exception, summary: dict[str, Any]) -> dict[str, Any]:
    """Log what ended a run, free its memory, and return status and reason."""
    is_full = is_out_of_memory(error)
    if is_full:
        log.debug("out of memory", exc_info=error)  # where says little; the line below says more
    else:
        log.exception("the run failed")
    release_memory(config.torch_device, error)
    if not is_full:
        return {"status": Status.failed.value, "reason": _one_line(error)}
    reason = out_of_memory_line(config, error, summary)
    log.error(reason)
    return {"status": Status.out_of_memory.value, "reason": reason}


def _close(env: Env) -> None:
    """Close ``env``; a failure to is logged, the run's result stands."""
    try:
        env.close()
    except Exception:
        log.exception("the environment did not close")


def _run_info(
    config: Config,
    folder: Path,
    overrides: Sequence[str],
    group: str | None,
    facts: dict[str, Any],
) -> RunInfo:
    env = re.sub(r"[^A-Za-z0-9._=-]", "-", config.env.id)[:24]
    parts = [env, config.memory.name, f"eps{config.epsilon_label}", f"s{config.seed}"]
    commit = facts["git"].get("commit")
    tags = [config.env.id, config.memory.name, *([f"g{commit[:7]}"] if commit else [])]
    return RunInfo(
        folder=folder,
        id="-".join([*parts[:3], parts[3][:12], secrets.token_hex(2)])[:64],
        name="__".join([config.env.id, *parts[1:]]),
        group=config.tracking.group or group,
        tags=tuple(tag[:64] for tag in [*tags, *config.tracking.tags]),
        total_steps=config.num_iterations * config.num_rows,
        config=config.as_dict() | {"overrides": list(overrides)} | facts,
    )


def _static_summary(
    config: Config, folder: Path, overrides: Sequence[str], facts: dict[str, Any]
) -> dict[str, Any]:
    """Return what is known before the first step; ``epsilon`` is absent when there is no clip."""
    summary = {
        "env": config.env.id,
        "memory": {"strategy": config.memory.name},
        "clipped": config.epsilon is not None,
        "seed": config.seed,
        "name": config.name,
        "overrides": list(overrides),
        "folder": str(folder),
    }
    if config.epsilon is not None:
        summary["epsilon"] = config.epsilon
    return summary | facts


def _ending(result: LaneResult) -> dict[str, Any]:
    if result.diverged is not None:
        return {"status": Status.diverged.value, "reason": result.diverged}
    return {"status": Status.finished.value, "reason": None}


def _measured(config: Config, trainer: Trainer) -> dict[str, Any]:
    """Return what the run measured, as far as it came."""
    trainer.meters.clock.read()
    history = trainer.history(lane=0)
    num_steps = trainer.iteration * config.num_rows
    measured = _scores(config, history) | {
        "env_steps": num_steps,
        "num_episodes": history.num_episodes,
        "num_parameters": _num_parameters(trainer.model),
        "time": {f"{name}_s": seconds for name, seconds in trainer.phase_seconds().items()},
        "env_steps_per_s": num_steps / max(trainer.elapsed_s, 1e-9),
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
