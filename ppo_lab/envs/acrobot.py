"""Acrobot-v1 as tensor operations: swing a two-link arm above a line by driving its elbow.

Dynamics: Sutton and Barto, "Reinforcement Learning" (1998), example 11.3 ("book", not "nips"),
fourth-order Runge-Kutta; constants as in gymnasium 1.4 envs/classic_control/acrobot.py, where
links weigh 1 kg, are 1 m long, have their mass at 0.5 m and a moment of inertia of 1 kg m^2. The
formulas contain these numbers; comments give the general form.

Shapes: L = lanes, N = environments per lane; a state is (theta1, theta2, omega1, omega2), in rad.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppo_lab.envs.base import DiscreteActions, EnvSpec
from ppo_lab.envs.native import NativeEnv

__all__ = ["Acrobot"]

_GRAVITY = 9.8  # m/s^2
_STEP_S = 0.2
_MAX_OMEGA_1 = 4.0 * math.pi  # rad/s
_MAX_OMEGA_2 = 9.0 * math.pi  # rad/s


def _derivative(state: Tensor, torque: Tensor) -> Tensor:
    """Return d state / dt (L, N, 4) under ``torque`` (L, N); names as in the book."""
    theta1, theta2, omega1, omega2 = state.unbind(-1)
    sin2 = theta2.sin()
    d1 = theta2.cos() + 3.5  # m1 lc1^2 + m2 (l1^2 + lc2^2 + 2 l1 lc2 cos2) + I1 + I2
    d2 = d1 * 0.5 - 0.5  # m2 (lc2^2 + l1 lc2 cos2) + I2 = 1.25 + 0.5 cos2
    ratio = d2 / d1
    phi2 = (theta1 + theta2).sin() * (0.5 * _GRAVITY)  # m2 lc2 g cos(theta1 + theta2 - pi/2)
    # phi1 = -m2 l1 lc2 (omega2^2 + 2 omega1 omega2) sin2 + (m1 lc1 + m2 l1) g sin1 + phi2
    phi1 = torch.add(phi2, theta1.sin(), alpha=1.5 * _GRAVITY)
    coupling = torch.add(omega1, omega2, alpha=0.5) * omega2
    phi1 = torch.addcmul(phi1, coupling, sin2, value=-1.0)
    # (torque + d2/d1 phi1 - m2 l1 lc2 omega1^2 sin2 - phi2) / (m2 lc2^2 + I2 - d2^2/d1)
    push = torch.addcmul(torque - phi2, ratio, phi1)
    push = torch.addcmul(push, omega1 * omega1, sin2, value=-0.5)
    alpha2 = push / (1.25 - d2 * ratio)
    alpha1 = torch.addcmul(phi1, d2, alpha2).div_(d1).neg_()
    return torch.stack((omega1, omega2, alpha1, alpha2), -1)


class Acrobot(NativeEnv):
    """Acrobot-v1: reward -1 per step; 0 at the goal, which terminates; truncated after 500."""

    spec = EnvSpec(observation_size=6, actions=DiscreteActions(3))
    time_limit = 500
    shortest_episode = 5  # the goal takes 2.5 m g = 24.5 J, a step adds <= 1 N m * 9 pi * 0.2 s
    start_low = (-0.1,) * 4
    start_high = (0.1,) * 4

    def _place_constants(self) -> None:
        # One turn for each angle; 0 for each speed, which then does not wrap.
        turn = 2.0 * math.pi
        self._turns = self._constant((turn, turn, 0.0, 0.0))
        self._per_turn = self._constant((1.0 / turn, 1.0 / turn, 0.0, 0.0))
        self._bounds = self._constant((math.inf, math.inf, _MAX_OMEGA_1, _MAX_OMEGA_2))
        self._minus_bounds = -self._bounds
        self._torque_low = self._constant(-1.0)
        self._at_goal = self._constant(0.0)
        self._elsewhere = self._constant(-1.0)

    def transition(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new state (L, N, 4), rewards (L, N) and terminated (L, N) of one step."""
        torque = self._torque_low + actions  # action 0, 1, 2: -1, 0, +1 N m
        k1 = _derivative(state, torque)
        k2 = _derivative(torch.add(state, k1, alpha=0.5 * _STEP_S), torque)
        k3 = _derivative(torch.add(state, k2, alpha=0.5 * _STEP_S), torque)
        k4 = _derivative(torch.add(state, k3, alpha=_STEP_S), torque)
        total = torch.add(k1 + k4, k2 + k3, alpha=2.0)
        moved = torch.add(state, total, alpha=_STEP_S / 6.0)
        # Wrap angles to [-pi, pi]; one already inside is unchanged to the bit.
        wrapped = torch.addcmul(moved, (moved * self._per_turn).round_(), self._turns, value=-1.0)
        new_state = wrapped.clamp_(self._minus_bounds, self._bounds)
        theta1, theta2, _, _ = new_state.unbind(-1)
        terminated = (theta1.cos() + (theta1 + theta2).cos()) < -1.0  # the tip is 1 m up
        return new_state, torch.where(terminated, self._at_goal, self._elsewhere), terminated

    def observe(self, state: Tensor) -> Tensor:
        """Return (cos1, sin1, cos2, sin2, omega1, omega2) (..., 6) of ``state`` (..., 4)."""
        theta1, theta2, omega1, omega2 = state.unbind(-1)
        parts = (theta1.cos(), theta1.sin(), theta2.cos(), theta2.sin(), omega1, omega2)
        return torch.stack(parts, -1)
