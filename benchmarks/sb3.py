"""Stable-Baselines3 at the settings of one of our configs.

Two settings are converted: SB3's value loss is the mean squared error, ours is half of it, so SB3's
coefficient is half of ours; SB3 reads its learning rate after a rollout, ours before, so its
schedule is one iteration ahead.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ppo_lab.config.run import Config, Schedule
from ppo_lab.networks import MlpConfig

if TYPE_CHECKING:
    from stable_baselines3 import PPO

__all__ = ["Sb3Run", "train"]


@dataclass
class Sb3Run:
    """Curve and clock readings of a training run."""

    steps: list[int] = field(default_factory=list)
    """Environment steps at the end of each iteration in which a return was known."""
    returns: list[float] = field(default_factory=list)
    """Mean of the last 100 episodes (of all, if fewer) at those steps."""
    iteration_ends: list[tuple[float, float]] = field(default_factory=list)
    """Wall and CPU seconds of the process at the end of each iteration, its update included; all
    but the last are read one vector step late."""


def train(config: Config) -> Sb3Run:
    """Train SB3's PPO in a DummyVecEnv on the CPU and return its curve and clock readings."""
    model, run = _build(config), Sb3Run()
    total_steps = config.num_iterations * config.num_rows

    def mark() -> None:
        run.iteration_ends.append((time.perf_counter(), time.process_time()))
        episodes = model.ep_info_buffer
        if episodes:
            run.steps.append(len(run.iteration_ends) * config.num_rows)
            run.returns.append(statistics.fmean(float(episode["r"]) for episode in episodes))

    def on_step(_locals: dict[str, Any], _globals: dict[str, Any]) -> bool:
        # After an iteration's first vector step: a plain function is called nowhere nearer its end.
        is_first = model.num_timesteps % config.num_rows == config.num_envs
        if is_first and model.num_timesteps > config.num_rows:
            mark()
        return True

    model.learn(total_steps, callback=on_step)
    mark()
    return run


def _build(config: Config) -> PPO:
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize

    network = config.network
    assert isinstance(network, MlpConfig)
    activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[network.activation.value]
    env: VecEnv = make_vec_env(config.env.id, n_envs=config.num_envs, seed=config.seed)
    if config.env.normalize_observations or config.env.normalize_rewards:
        env = VecNormalize(
            env,
            norm_obs=config.env.normalize_observations,
            norm_reward=config.env.normalize_rewards,
            gamma=config.gamma,
        )
    hidden = list(network.hidden)
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=_learning_rate(config),
        n_steps=config.num_steps,
        batch_size=config.num_rows // config.num_minibatches,
        n_epochs=config.num_epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.epsilon,
        ent_coef=config.entropy_coef,
        vf_coef=config.value_coef / 2.0,
        max_grad_norm=config.max_grad_norm,
        policy_kwargs={
            "net_arch": {"pi": hidden, "vf": hidden},
            "activation_fn": activation,
            "ortho_init": True,
        },
        seed=config.seed,
        device="cpu",
    )


def _learning_rate(config: Config) -> Callable[[float], float]:
    """Return the learning rate as a function of the share of the run that remains."""
    is_linear = config.lr_schedule is Schedule.linear
    ahead = 1.0 / config.num_iterations
    return lambda remaining: config.lr * (remaining + ahead if is_linear else 1.0)
