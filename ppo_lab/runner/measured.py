"""What a run's summary says of its training: scores, times, sizes, and where it ran."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ppo_lab.config.run import Config
from ppo_lab.forecasting.summary import device_section
from ppo_lab.networks import ActorCritic
from ppo_lab.training.scores import History, area_under_curve, has_collapsed, is_dead
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.provenance import git_state, machine, versions

__all__ = ["Begin", "facts", "measured", "num_parameters"]


class Begin(NamedTuple):
    """Progress of the stack when the run began in it."""

    elapsed_s: float
    num_live_steps: int
    phase_seconds: Mapping[str, float]


def measured(config: Config, trainer: Trainer, lane: int, begin: Begin) -> dict[str, Any]:
    """Return the measurements of a run and of its stack since the run began."""
    trainer.meters.clock.read()
    history = trainer.history(lane)
    elapsed_s = trainer.elapsed_s - begin.elapsed_s
    phases_s = trainer.phase_seconds().items()
    measured = _scores(config, history) | {
        "env_steps": trainer.lane_steps(lane),
        "num_episodes": history.num_episodes,
        "num_parameters": num_parameters(trainer.model),
        # Of the whole stack, like peak memory.
        "time": {f"{name}_s": s - begin.phase_seconds.get(name, 0.0) for name, s in phases_s},
        "env_steps_per_s": (trainer.num_live_steps - begin.num_live_steps) / max(elapsed_s, 1e-9),
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
    if history.texts:
        scores["text"] = history.texts
    scores |= history.eval_scores() if config.eval_every else {}
    if score_range := config.env.score_range():
        random_return, target_return = score_range
        scores["collapsed"] = has_collapsed(
            history.returns, random_return=random_return, target_return=target_return
        )
        scores["dead"] = is_dead(
            history.returns, history.entropy_fracs, history.kls, random_return=random_return
        )
    return scores


def num_parameters(model: ActorCritic) -> dict[str, int]:
    """Return one lane's parameters by group: actor, critic and, where shared, trunk."""
    return {
        name: sum(p.numel() // p.shape[0] for p in parameters)
        for name, parameters in model.groups().items()
    }


@functools.cache
def facts(device: torch.device) -> dict[str, Any]:
    """Return versions, commit and machine, which are the same for all runs of this process."""
    return {"versions": versions(), "git": git_state(), "machine": machine(device)}
