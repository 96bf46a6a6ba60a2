"""CartPole-v1 as tensor operations: balance a pole on a cart by pushing left or right.

Dynamics: Barto, Sutton and Anderson (1983), "Neuronlike adaptive elements that can solve difficult
learning control problems", as corrected by Florian (2005), "Correct equations for the dynamics of
the cart-pole system", eq. 23-24; constants as in gymnasium 1.4 envs/classic_control/cartpole.py.

Shapes: L = lanes, N = environments per lane; a state is (x, x_dot, theta, theta_dot), in m and rad.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppo_lab.envs.base import DiscreteActions, EnvSpec
from ppo_lab.envs.native import NativeEnv

__all__ = ["CartPole", "MaskedCartPole"]

_GRAVITY = 9.8  # m/s^2
_POLE_MASS = 0.1  # kg
_TOTAL_MASS = 1.0 + _POLE_MASS  # kg, with the cart
_HALF_LENGTH = 0.5  # m
_FORCE = 10.0  # N
_STEP_S = 0.02  # explicit Euler
_POLE_MOMENT = _POLE_MASS * _HALF_LENGTH / _TOTAL_MASS  # m, per unit of total mass
_COS_INERTIA = -_HALF_LENGTH * _POLE_MASS / _TOTAL_MASS  # m, times cos^2
_X_LIMIT = 2.4  # m
_THETA_LIMIT = 12.0 * 2.0 * math.pi / 360.0  # rad


class CartPole(NativeEnv):
    """CartPole-v1: reward 1 per step, terminated at 2.4 m or 12 degrees, truncated after 500."""

    spec = EnvSpec(observation_size=4, actions=DiscreteActions(2))
    time_limit = 500
    shortest_episode = 8  # found by trying every sequence of pushes
    start_low = (-0.05,) * 4
    start_high = (0.05,) * 4

    def _place_constants(self) -> None:
        self._limits = self._constant((_X_LIMIT, math.inf, _THETA_LIMIT, math.inf))
        self._push_left = self._constant(-_FORCE / _TOTAL_MASS)
        self._gravity = self._constant(_GRAVITY)
        self._inertia = self._constant(_HALF_LENGTH * 4.0 / 3.0)
        self._ones = torch.ones(self.num_lanes, self.num_envs, dtype=self.dtype, device=self.device)

    def transition(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new state (L, N, 4), rewards (L, N) and terminated (L, N) of one step."""
        _, x_dot, theta, theta_dot = state.unbind(-1)
        cos, sin = theta.cos(), theta.sin()
        push = torch.add(self._push_left, actions, alpha=2.0 * _FORCE / _TOTAL_MASS)
        push = torch.addcmul(push, theta_dot * theta_dot, sin, value=_POLE_MOMENT)
        torque = torch.addcmul(sin * self._gravity, cos, push, value=-1.0)
        inertia = torch.addcmul(self._inertia, cos, cos, value=_COS_INERTIA)
        theta_acc = torque / inertia
        x_acc = torch.addcmul(push, theta_acc, cos, value=-_POLE_MOMENT)
        speed = torch.stack((x_dot, x_acc, theta_dot, theta_acc), -1)
        new_state = torch.add(state, speed, alpha=_STEP_S)
        terminated = (new_state.abs() > self._limits).any(-1)
        return new_state, self._ones, terminated


class MaskedCartPole(CartPole):
    """CartPole whose observation is (x, theta): velocities must be inferred from past ones.

    No policy of the current observation alone balances the pole for long; one that remembers the
    last observation can.
    """

    spec = EnvSpec(observation_size=2, actions=DiscreteActions(2))
    only_native = True

    def observe(self, state: Tensor) -> Tensor:
        """Return the positions (..., 2) of ``state`` (..., 4)."""
        return state[..., ::2]
