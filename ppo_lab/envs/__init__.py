"""Vectorised environments that return tensors on the training device.

To add a native environment, add one line with its id here.
"""

from __future__ import annotations

from ppo_lab.envs.acrobot import Acrobot
from ppo_lab.envs.cartpole import CartPole, MaskedCartPole
from ppo_lab.envs.native import NativeEnv
from ppo_lab.envs.pendulum import Pendulum

__all__ = ["NATIVE_ENVS"]

NATIVE_ENVS: dict[str, type[NativeEnv]] = {
    "Acrobot-v1": Acrobot,
    "CartPole-v1": CartPole,
    "CartPoleMasked-v0": MaskedCartPole,
    "Pendulum-v1": Pendulum,
}
