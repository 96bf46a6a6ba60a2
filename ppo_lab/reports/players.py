"""Trained policies that play in the page: their weights, for each setting that was measured."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_lab.reports.groups import Group, Section
from ppo_lab.reports.loading import Run, plain

__all__ = ["player_of", "saved_policy"]

_LIMITS = {"CartPole-v1": 500, "Acrobot-v1": 500, "Pendulum-v1": 200}
"""Steps of an episode, by environments that the page has dynamics for."""


def player_of(
    section: Section, most_chars: int, skipped: Callable[[str], object]
) -> dict[str, Any] | None:
    """Return a policy for each setting of ``section``: of the seed whose return is the median.

    None where the page cannot play the environment, or there is no policy. If all weights together
    exceed ``most_chars``, those of settings with lower returns are left out.
    """
    groups = [group for group in section.groups if _saved(group)]
    found = []
    num_chars = 0
    for group in sorted(groups, key=lambda group: -(group.mean_return or 0.0)):
        ranked = sorted(_saved(group), key=lambda run: run.final_return or 0.0)
        run = ranked[len(ranked) // 2]
        try:
            policy = saved_policy(run.folder)
        except (OSError, ValueError) as error:
            skipped(f"a policy does not play: {plain(error)}")
            continue
        size = sum(len(text) for layer in policy["layers"] for text in layer) if policy else 0
        if policy is None or num_chars + size > most_chars:
            continue
        num_chars += size
        about = {"label": group.label, "seed": run.seed, "final_return": run.final_return}
        found.append((section.groups.index(group), about | policy))
    if not found:
        return None
    order = sorted(range(len(found)), key=lambda i: found[i][0])
    return {
        "env": section.env,
        "limit": _limit(groups[0].runs[0]),
        "first": order.index(0),  # the best plays first
        "policies": [found[i][1] for i in order],
    }


def _saved(group: Group) -> list[Run]:
    """Return the finished runs whose policy can play."""
    runs = [run for run in group.finished if _is_played(run)]
    return [run for run in runs if (run.folder / "checkpoint" / "policy.json").is_file()]


def _is_played(run: Run) -> bool:
    is_changed = any(
        key.startswith("env.kwargs") and value not in ({}, None)
        for key, value in run.settings.items()
    )
    return run.env in _LIMITS and not is_changed


def _limit(run: Run) -> int:
    steps = run.settings.get("env.max_episode_steps")
    return steps if isinstance(steps, int) else _LIMITS[run.env]


def saved_policy(folder: Path) -> dict[str, Any] | None:
    """Return the policy of a run for ``player.js``; None for one that is no multilayer perceptron.

    Weights are base64 of little-endian float32, row by row (inputs, outputs).

    Raises:
        OSError: There is none, or it cannot be read.
        ValueError: It is damaged.
    """
    from safetensors.numpy import load_file

    from ppo_lab.envs.base import DiscreteActions
    from ppo_lab.envs.running_stats import CLIP, EPSILON
    from ppo_lab.training.policy import load_policy

    policy, checkpoint = load_policy(folder), folder / "checkpoint"  # which checks the files
    described = json.loads((checkpoint / "policy.json").read_bytes())["network"]
    if described["kind"] != "mlp":
        return None
    tensors: Mapping[str, NDArray[Any]] = load_file(checkpoint / "model.safetensors")
    names = [f"model.actor.layers.{i}" for i, _ in enumerate(described["hidden"])]
    names.append("model.policy_head")
    saved: dict[str, Any] = {
        "discrete": isinstance(policy.spec.actions, DiscreteActions),
        "activation": described["activation"],
        "layers": [
            [_text(tensors[f"{name}.{part}"]) for part in ("weight", "bias")] for name in names
        ],
    }
    if "env.observation_mean" in tensors:
        deviation = np.sqrt(tensors["env.observation_var"][0] + EPSILON)
        mean = tensors["env.observation_mean"][0].tolist()
        saved |= {"mean": mean, "deviation": deviation.tolist(), "clip": CLIP}
    return saved


def _text(values: NDArray[Any]) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()
