"""Environments: what steps L * N of them at once and returns tensors on the trainer's device.

A native environment is known by its Gymnasium id: to add one, add its line here.
"""

from __future__ import annotations

from ppo_lab.envs.acrobot import Acrobot
from ppo_lab.envs.cartpole import CartPole
from ppo_lab.envs.native import NativeEnv
from ppo_lab.envs.pendulum import Pendulum

__all__ = ["NATIVE_ENVS"]

NATIVE_ENVS: dict[str, type[NativeEnv]] = {
    "Acrobot-v1": Acrobot,
    "CartPole-v1": CartPole,
    "Pendulum-v1": Pendulum,
}
