"""Pendulum-v1 as tensor operations: swing up a pendulum and balance it with a weak motor.

Dynamics and reward as in gymnasium 1.4 envs/classic_control/pendulum.py.

Shapes: L = lanes, N = environments per lane; a state is (theta, theta_dot), in rad, 0 is upright.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppo_lab.envs.base import ContinuousActions, EnvSpec
from ppo_lab.envs.native import NativeEnv

__all__ = ["Pendulum"]

_MAX_SPEED = 8.0  # rad/s
_MAX_TORQUE = 2.0  # N m
_STEP_S = 0.05
_GRAVITY_GAIN = 3.0 * 10.0 / (2.0 * 1.0)  # 3 g / (2 l), 1/s^2
_TORQUE_GAIN = 3.0 / (1.0 * 1.0**2)  # 3 / (m l^2)


class Pendulum(NativeEnv):
    """Pendulum-v1: reward minus a cost of angle, speed and torque; truncated after 200 steps."""

    spec = EnvSpec(observation_size=3, actions=ContinuousActions((-_MAX_TORQUE,), (_MAX_TORQUE,)))
    time_limit = 200
    shortest_episode = 200
    start_low = (-math.pi, -1.0)
    start_high = (math.pi, 1.0)

    def _place_constants(self) -> None:
        shape = self.num_lanes, self.num_envs
        self._never = torch.zeros(shape, dtype=torch.bool, device=self.device)

    def transition(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new state (L, N, 2), rewards (L, N) and terminated (L, N) of one step."""
        theta, theta_dot = state.unbind(-1)
        torque = actions.squeeze(-1).clamp(-_MAX_TORQUE, _MAX_TORQUE)
        angle = (theta + math.pi).remainder(2.0 * math.pi) - math.pi  # from upright, in [-pi, pi)
        # The cost is of the state before the step: (pi^2 + 0.1 * 8^2 + 0.001 * 2^2) at worst.
        cost = torch.addcmul(angle * angle, theta_dot, theta_dot, value=0.1)
        rewards = torch.addcmul(cost, torque, torque, value=0.001).neg_()
        speed_change = torch.add(theta.sin() * _GRAVITY_GAIN, torque, alpha=_TORQUE_GAIN)
        new_theta_dot = torch.add(theta_dot, speed_change, alpha=_STEP_S)
        new_theta_dot = new_theta_dot.clamp_(-_MAX_SPEED, _MAX_SPEED)
        new_theta = torch.add(theta, new_theta_dot, alpha=_STEP_S)
        return torch.stack((new_theta, new_theta_dot), -1), rewards, self._never

    def observe(self, state: Tensor) -> Tensor:
        """Return (cos theta, sin theta, theta_dot) (..., 3) of ``state`` (..., 2)."""
        theta, theta_dot = state.unbind(-1)
        return torch.stack((theta.cos(), theta.sin(), theta_dot), -1)
