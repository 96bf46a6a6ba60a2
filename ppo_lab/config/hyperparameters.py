"""Hyperparameters of PPO and of the objectives that are close to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ppo_lab.config.choices import Schedule
from ppo_lab.ppo.losses import PolicyLoss
from ppo_lab.ppo.row_weights import Aggregation
from ppo_lab.ppo.update import AdvantageNormalization
from ppo_lab.utils.errors import ConfigError, check_number

__all__ = ["Hyperparameters"]


@dataclass(kw_only=True)
class Hyperparameters:
    """What an update does with a rollout, and how large both are."""

    # Clip and policy loss
    epsilon: Any = 0.2
    """Half-width of the clip of the probability ratio to [1 - epsilon, 1 + epsilon]. 0.1 to 0.3 is
    usual; larger learns faster but is less stable; none does not clip."""
    epsilon_high: Any = None
    """Upper half-width, if different (clip-higher, arXiv:2503.14476: 0.28 with epsilon 0.2)."""
    epsilon_schedule: Schedule = Schedule.constant
    """linear anneals epsilon to 0 over the run, as in PPO's Atari settings."""
    dual_clip: Any = None
    """Dual clip c > 1: bounds the objective of actions with negative advantage A below by c * A
    (arXiv:1912.09729, c = 3); none for PPO's own objective."""
    policy_loss: PolicyLoss = PolicyLoss.clip
    """clip: PPO's. gspo: the ratio of a whole episode. cispo: the policy gradient with clipped
    weights, which cuts no gradient."""
    aggregation: Aggregation = Aggregation.token_mean
    """How steps of whole episodes are averaged: token_mean, all alike; sequence_mean, each episode
    alike (GRPO); sequence_sum, divided by the most steps (Dr. GRPO)."""
    value_epsilon: Any = None
    """Half-width of the clip of the value loss; none (off) performs better (arXiv:2006.05990)."""
    target_kl: Any = None
    """KL limit in nats: an update ends once the k3 estimate of a minibatch exceeds 1.5 times this.
    0.01 to 0.03 is usual; none never stops."""

    # Optimizer
    lr: float = 3e-4
    """Adam's learning rate, 1e-4 to 1e-3; larger needs a smaller epsilon or fewer epochs."""
    lr_schedule: Schedule = Schedule.constant
    """linear: from lr in the first update to lr / n in the last of n (CleanRL; SB3 ends at 0)."""
    adam_eps: float = 1e-5
    """Term added to the root of Adam's second moment; 1e-5 is usual for PPO, 1e-8 in torch."""
    max_grad_norm: Any = 0.5
    """Limit of the global gradient norm, over actor and critic together; none does not clip."""
    separate_grad_clip: bool = False
    """Clip the gradients of actor and critic separately: a large value loss then does not shrink
    the policy's step. Always so with memory=parked, which never holds both gradients."""

    # Returns and advantages
    gamma: float = 0.99
    """Discount factor, in [0, 1]."""
    gae_lambda: float = 0.95
    """GAE's lambda, in [0, 1]: 0 is one-step TD (more bias), 1 Monte Carlo (more variance)."""
    gae_lambda_policy: Any = None
    """GAE's lambda for the policy's advantages, if different (decoupled GAE of VC-PPO and VAPO,
    arXiv:2503.01491, arXiv:2504.05118)."""
    gae_lambda_value: Any = None
    """GAE's lambda for the critic's targets, if different; 1 for language in these papers."""
    bootstrap_truncated: bool = True
    """Bootstrap from the last observation's value when a time limit ends an episode; false treats
    a time limit as a termination."""

    # Critic first
    policy_start_iteration: int = 0
    """Iterations in which only the critic trains, before the policy does too (VC-PPO,
    arXiv:2503.01491, section 3.1). Adam begins anew after them. The policy does not change before,
    unless memory=shared_trunk: there the trunk learns values, and the policy's features with it."""

    # Rollout and update
    num_envs: int = 8
    """Environments stepped in parallel."""
    num_steps: int = 128
    """Steps of each environment per iteration. Whole episodes (memory=critic_free) have up to
    env.max_episode_steps instead."""
    num_epochs: int = 4
    """Passes over each rollout; more learns faster per step but moves further off-policy."""
    num_minibatches: int = 4
    """Gradient steps per epoch; must divide num_envs * num_steps."""
    advantage_normalization: AdvantageNormalization = AdvantageNormalization.auto
    """Rows over which advantages are normalized: each minibatch, the whole rollout, or none. auto:
    minibatch with baseline=gae or per_step; none with the others, which have scaled advantages
    themselves (grpo, reinforce_pp) or leave their size alone on purpose (dr_grpo, rloo)."""
    entropy_coef: float = 0.0
    """Coefficient of the entropy bonus, 0 to 0.02."""
    value_coef: float = 0.5
    """Coefficient of the value loss, half a mean squared error (as CleanRL; SB3's has no half)."""

    def check_numbers(self) -> None:
        """Check and convert the values that are numbers; raise ``ConfigError``."""
        for key in ("epsilon", "epsilon_high", "value_epsilon", "target_kl", "max_grad_norm"):
            setattr(self, key, check_number(key, getattr(self, key), above=0.0, off=True))
        self.dual_clip = check_number("dual_clip", self.dual_clip, above=1.0, off=True)
        for key in ("lr", "adam_eps"):
            check_number(key, getattr(self, key), above=0.0)
        for key in ("gamma", "gae_lambda"):
            check_number(key, getattr(self, key), at_least=0.0, at_most=1.0)
        for key in ("gae_lambda_policy", "gae_lambda_value"):
            value = check_number(key, getattr(self, key), at_least=0.0, at_most=1.0, off=True)
            setattr(self, key, value)
        for key in ("entropy_coef", "value_coef"):
            check_number(key, getattr(self, key), at_least=0.0)
        if self.epsilon is None and self.epsilon_high is not None:
            allowed = "has no effect with epsilon=none; leave it out"
            raise ConfigError("epsilon_high", self.epsilon_high, allowed)
        if self.epsilon_high is not None and self.epsilon_high < self.epsilon:
            allowed = f"must be at least epsilon={self.epsilon:g}; lower epsilon instead"
            raise ConfigError("epsilon_high", self.epsilon_high, allowed)

    @property
    def epsilon_label(self) -> str:
        """Epsilon as text: ``none`` where it is off."""
        return "none" if self.epsilon is None else f"{self.epsilon:g}"
