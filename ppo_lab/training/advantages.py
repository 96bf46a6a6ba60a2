"""Advantages of a rollout, by the baseline and the coefficients of its lanes.

Shapes: T = steps per rollout, L = lanes, N = environments per lane.
"""

from __future__ import annotations

from ppo_lab.config.run import Config
from ppo_lab.ppo.advantages import Advantages, gae
from ppo_lab.ppo.baselines import GroupBaseline
from ppo_lab.ppo.rollout import Rollout
from ppo_lab.training.lane_values import LaneValues

__all__ = ["estimate"]


def estimate(rollout: Rollout, config: Config, lanes: LaneValues) -> Advantages:
    """Return advantages (T, L, N), and with a critic its targets.

    If the lambdas of a lane differ there are two estimates, one for the policy and one for the
    critic (decoupled GAE, arXiv:2503.01491).
    """
    baseline = config.resolved_baseline
    if isinstance(baseline, GroupBaseline):
        assert rollout.live is not None
        return Advantages(baseline.advantages(rollout.rewards, rollout.live, lanes.gamma), None)
    assert rollout.values is not None
    assert rollout.next_values is not None
    terminated, truncated = rollout.terminated, rollout.truncated
    if not config.bootstrap_truncated:
        terminated = terminated | truncated
    columns = rollout.rewards, rollout.values, rollout.next_values, terminated, truncated
    of_policy = gae(*columns, gamma=lanes.gamma, gae_lambda=lanes.lambda_policy)
    if not lanes.has_two_lambdas:
        return of_policy
    of_critic = gae(*columns, gamma=lanes.gamma, gae_lambda=lanes.lambda_value)
    return of_policy._replace(value_targets=of_critic.value_targets)
