"""Folders of runs as training leaves them, written by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

__all__ = ["write_run"]

EDGES = [10.0 ** (-2 + 4 * i / 16) for i in range(17)]


def write_run(
    folder: Path, *, epsilon: float | None = 0.2, seed: int = 1, end: float = 100.0,
    status: str | None = "finished", env: str = "CartPole-v1", num_rows: int = 10,
    overrides: tuple[str, ...] = (), summary: dict[str, Any] | None = None, lr: float = 1e-3,
    hidden: tuple[int, ...] = (64, 64),
) -> Path:  # fmt: skip
    """Write a run whose return rises linearly to ``end``; ``status=None`` leaves no summary."""
    (folder / ".hydra").mkdir(parents=True)
    shown = "null" if epsilon is None else epsilon
    (folder / ".hydra" / "config.yaml").write_text(
        f"epsilon: {shown}\nepsilon_high: null\nlr: {lr}\nseed: {seed}\nname: run\n"
        f"env:\n  id: {env}\n  max_episode_steps: null\n  kwargs: {{}}\n"
        f"network:\n  hidden: {list(hidden)}\n  activation: tanh\n"
    )
    (folder / ".hydra" / "hydra.yaml").write_text(
        f"hydra:\n  overrides:\n    task: {list(overrides)}\n"
        "  runtime:\n    choices:\n      memory: co_resident\n"
    )
    rows = []
    for i in range(1, num_rows + 1):
        share = i / num_rows
        counts = [0] * 16
        counts[7], counts[8], counts[9] = 40, 50, 10
        rows.append({
            "global_step": 100 * i, "iteration": i, "charts/episodic_return_last100": end * share,
            "ppo/clip_above_frac": 0.1 * share, "ppo/clip_below_frac": 0.05,
            "ppo/kl_k3": 0.01 * share, "ppo/entropy": 0.7 - 0.1 * share,
            "ppo/ratio": {"counts": counts, "edges": EDGES},
        } | ({} if epsilon is None else {"ppo/epsilon": epsilon}))  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status is not None:
        content = {
            "env": env, "seed": seed, "status": status, "overrides": list(overrides),
            "memory": {"strategy": "co_resident"}, "env_steps": 100 * num_rows, "best_return": end,
            "env_steps_per_s": 1234.5, "wall_time_s": 2.0,
            "time": {"rollout_s": 1.0, "update_s": 0.5, "env_s": 0.3},
        } | (summary or {})  # fmt: skip
        assert math.isfinite(end)
        (folder / "summary.json").write_text(json.dumps(content))
    return folder
