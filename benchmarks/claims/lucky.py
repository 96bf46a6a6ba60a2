"""One lucky drive: what a single rollout may do to a good policy, with and without the clip.

A policy is trained as usual. Then it sees one rollout (1,024 steps) and is updated on it for far
too many epochs. The deterministic policy is evaluated before and after.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.claims.grids import interval
from benchmarks.claims.pictures import COLOURS, axes, save
from benchmarks.result_page import table
from ppo_lab.config.compose import check_jobs
from ppo_lab.config.run import Config
from ppo_lab.play import evaluate
from ppo_lab.training.checkpoint import LaneState
from ppo_lab.training.policy import load_policy, save_policy
from ppo_lab.training.precision import configure_torch
from ppo_lab.training.trainer import Trainer

__all__ = ["lucky"]

_SEEDS = 16
_STEPS = 40_960
_EPOCHS = (1, 3, 10, 30, 100, 300)
_EPISODES = 20
_COMMON = ("env=cartpole", "network=tiny", "device=cpu", "num_threads=1", "compile=never")


def lucky() -> list[str]:
    """What does one over-long update do to a policy?"""
    states, before = _train()
    after = {
        name: [_update(states, epsilon, num_epochs) for num_epochs in _EPOCHS]
        for name, epsilon in (("ε = 0.2", "0.2"), ("no clip", "none"))
    }
    figure, (returns, largest) = axes(["return after one long update", "largest ratio"])
    for colour, (name, updates) in zip((COLOURS[0], COLOURS[3]), after.items()):
        scores = np.array([scores for scores, _ in updates])  # (epochs, seeds)
        half = 1.96 * scores.std(1, ddof=1) / _SEEDS**0.5
        returns.errorbar(_EPOCHS, scores.mean(1), half, color=colour, label=name, capsize=2)
        ratios = np.array([ratios for _, ratios in updates])
        largest.plot(_EPOCHS, np.median(ratios, axis=1), color=colour, marker="o", markersize=3)
    returns.axhline(
        float(np.mean(before)), color="grey", linewidth=1, linestyle="--", label="before"
    )
    returns.legend(frameon=False, fontsize=8)
    for panel in (returns, largest):
        panel.set_xscale("log")
        panel.set_xticks(_EPOCHS, [str(num_epochs) for num_epochs in _EPOCHS])
        panel.minorticks_off()
        panel.set_xlabel("epochs on one rollout", fontsize=8)
    largest.set_yscale("log")
    save(figure, "lucky")
    rows = [
        [str(num_epochs)]
        + [cell for updates in after.values() for cell in _cells(*updates[number])]
        for number, num_epochs in enumerate(_EPOCHS)
    ]
    header = ["epochs", *(f"{name}: {what}" for name in after for what in ("return", "ratio"))]
    return [
        "## One long update",
        f"CartPole, {_SEEDS} policies after {_STEPS:,} steps; deterministic policies, {_EPISODES} "
        f"episodes each; before the update {interval(before)}. `ratio`: the largest of the "
        "rollout after the update, median over seeds.",
        table(header, rows),
    ]


def _cells(scores: list[float], ratios: list[float]) -> list[str]:
    return [interval(scores), f"{np.median(ratios):.3g}"]


def _configs(*overrides: str) -> list[Config]:
    command = [*_COMMON, *overrides, f"seed=range(1,{_SEEDS + 1})"]
    jobs = check_jobs(command, is_multirun=True, config_dir=None, config_name=None)
    return [job.config for job in jobs]


def _train() -> tuple[list[LaneState], list[float]]:
    """Return policies in training, and their returns."""
    trainer = Trainer(_configs(f"total_steps={_STEPS}"))
    configure_torch(trainer.config)
    for _ in range(trainer.config.num_iterations):
        trainer.iterate()
    states = [trainer.lane_state(lane) for lane in range(_SEEDS)]
    return states, _close(trainer)


def _update(
    states: list[LaneState], epsilon: str, num_epochs: int
) -> tuple[list[float], list[float]]:
    """Return each seed's return after one iteration of ``num_epochs``, and its largest ratio."""
    largest = [0.0] * _SEEDS

    def on_record(lane: int, record: object) -> None:
        largest[lane] = float(record.metrics["ppo/ratio_max"])  # type: ignore[attr-defined]

    overrides = (f"epsilon={epsilon}", f"num_epochs={num_epochs}")
    trainer = Trainer(_configs(*overrides, f"total_steps={2 * _STEPS}"), on_record)
    for lane, state in enumerate(states):
        trainer.load_lane_state(lane, state)
    trainer.iterate()
    return _close(trainer), largest


def _close(trainer: Trainer) -> list[float]:
    """Return the mean return of each lane's deterministic policy, and close the trainer."""
    scores = []
    for lane, config in enumerate(trainer.configs):
        with tempfile.TemporaryDirectory() as folder:
            state, spec = trainer.env.state_dict(), trainer.spec
            save_policy(Path(folder), config, trainer.model, state, spec=spec, lane=lane)
            policy = load_policy(folder)
        played = evaluate(
            policy, config.env, num_episodes=_EPISODES, seed=10**6, deterministic=True,
            max_steps=10**5,
        )  # fmt: skip
        scores.append(float(np.mean(played.returns)))
    trainer.close()
    return scores
