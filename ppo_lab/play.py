"""Evaluate a saved policy: ``python -m ppo_lab.play outputs/runs/...``.

Every episode has its own seed and runs to its end; actions are deterministic by default. Prints
eval_return, mean and standard deviation over the episodes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from rich.console import Console

from ppo_lab.devices.placement import Placement
from ppo_lab.envs.base import DiscreteActions
from ppo_lab.envs.config import EnvConfig
from ppo_lab.training.policy import Policy, load_policy

__all__ = ["evaluate", "main"]


def evaluate(
    policy: Policy,
    env_config: EnvConfig,
    *,
    num_episodes: int,
    seed: int,
    deterministic: bool,
    max_steps: int,
) -> list[float]:
    """Run a policy for whole episodes, all stepped together.

    Args:
        policy: From ``load_policy``; it normalises observations itself.
        env_config: The environment it was trained in.
        num_episodes: One environment each.
        seed: Seed of the episodes' initial states and, unless deterministic, of the actions.
        deterministic: Take the most likely action instead of sampling.
        max_steps: Longest episode allowed.

    Returns:
        Each episode's undiscounted return, in the environment's own units.

    Raises:
        TimeoutError: An episode did not end within ``max_steps``.
    """
    # The policy normalises observations with the statistics of its training.
    raw = dataclasses.replace(env_config, normalize_observations=False, normalize_rewards=False)
    env = raw.build(
        seeds=torch.tensor([seed], dtype=torch.int64),
        num_envs=num_episodes,
        gamma=torch.ones(1),
        placement=Placement(torch.device("cpu")),
    )
    shape = env.spec.observation_shape or (env.spec.observation_size,)
    start = env.spec.actions.start if isinstance(env.spec.actions, DiscreteActions) else 0
    observations = env.reset()
    returns = torch.zeros(num_episodes, dtype=torch.float64)
    is_running = torch.ones(num_episodes, dtype=torch.bool)
    for _ in range(max_steps):
        batch = observations[0].reshape(num_episodes, *shape).numpy()
        actions = policy.act(batch, deterministic=deterministic, seed=seed) - start
        step = env.step(torch.as_tensor(actions).unsqueeze(0))
        returns += torch.where(is_running, step.env_rewards[0].double(), 0.0)
        is_running &= ~(step.terminated | step.truncated)[0]
        observations = step.observations
        if not is_running.any():
            break
    env.close()
    if running := int(is_running.sum()):
        left = f"{running} of {num_episodes} episodes"
        raise TimeoutError(f"{left} did not end within {max_steps} steps")
    return returns.tolist()


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate the run named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ppo_lab.play", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--episodes", type=_positive, default=20, help="default 20")
    parser.add_argument("--seed", type=int, default=1_000_000, help="default 1000000")
    parser.add_argument("--max-steps", type=_positive, default=100_000, help="per episode")
    parser.add_argument("--stochastic", action="store_true", help="sample actions as in training")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parsed = parser.parse_args(arguments)
    try:
        policy = load_policy(parsed.run)
        saved = OmegaConf.load(parsed.run / ".hydra" / "config.yaml")
        env: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(EnvConfig), saved.env))
        returns = evaluate(
            policy,
            env,
            num_episodes=parsed.episodes,
            seed=parsed.seed,
            deterministic=not parsed.stochastic,
            max_steps=parsed.max_steps,
        )
    except (FileNotFoundError, ValueError, TimeoutError) as error:
        sys.stderr.write(f"ppo_lab.play: {error}\n")
        return 2
    mean, deviation = float(np.mean(returns)), float(np.std(returns))
    if parsed.json:
        result = {"eval_return": mean, "eval_return_std": deviation, "returns": returns}
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        span = f"({min(returns):,.1f} to {max(returns):,.1f})"
        over = f"over {len(returns)} episodes of {policy.env_id} {span}"
        Console().print(f"eval_return {mean:,.1f} ± {deviation:,.1f} {over}", soft_wrap=True)
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
