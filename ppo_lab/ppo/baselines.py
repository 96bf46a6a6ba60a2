"""Advantages without a critic: the return of an episode against those of its group.

A group is G consecutive environments whose episodes begin alike; N is a multiple of G. A rollout
is one episode per environment. Its steps before and after that are *dead*: their rewards do not
count and their advantages are 0. The return R of an episode is the undiscounted sum of its rewards.

Where a group has only one member there is nothing to subtract and its mean counts as 0, its
standard deviation as 1, as in verl.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, G = members of a group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ppo_lab.ppo.advantages import gae
from ppo_lab.ppo.losses import normalize_advantages
from ppo_lab.utils.errors import ConfigError

__all__ = [
    "BASELINES",
    "AutoBaseline",
    "Baseline",
    "DrGrpo",
    "Gae",
    "GroupBaseline",
    "Grpo",
    "OutcomeBaseline",
    "PerStep",
    "ReinforcePP",
    "Rloo",
    "dr_grpo",
    "grpo",
    "no_signal_frac",
    "per_step",
    "reinforce_pp",
    "return_to_go",
    "rloo",
]

_EPS = 1e-6  # as in verl; TRL adds 1e-4


def grpo(rewards: Tensor, live: Tensor, group_size: int) -> Tensor:
    """Return GRPO's advantages (T, L, N): (R - mean) / (std + 1e-6) at all steps of an episode.

    arXiv:2402.03300, section 4.1.2. The group's standard deviation is the unbiased one, as in verl
    and TRL. ``rewards`` and ``live``, bool, are (T, L, N).
    """
    groups = _grouped(_returns(rewards, live), group_size)  # (L, N / G, G)
    std = 1.0 if group_size == 1 else groups.std(-1, keepdim=True)
    return _spread((groups - _mean(groups)) / (std + _EPS), live)


def dr_grpo(rewards: Tensor, live: Tensor, group_size: int) -> Tensor:
    """Return Dr. GRPO's advantages (T, L, N): R - mean (arXiv:2503.20783, section 3.2).

    Without a division by the standard deviation, groups of nearly equal returns do not count more.
    Its other half is ``Aggregation.sequence_sum``.
    """
    groups = _grouped(_returns(rewards, live), group_size)
    return _spread(groups - _mean(groups), live)


def rloo(rewards: Tensor, live: Tensor, group_size: int) -> Tensor:
    """Return R minus the mean of the group's other members (T, L, N) (RLOO, arXiv:2402.14740).

    That is G / (G - 1) times ``dr_grpo``.
    """
    return dr_grpo(rewards, live, group_size) * (group_size / max(group_size - 1, 1))


def reinforce_pp(
    rewards: Tensor, live: Tensor, gamma: Tensor, group_size: int, *, group_baseline: bool
) -> Tensor:
    """Return REINFORCE++'s advantages (T, L, N) (arXiv:2501.03262).

    The return-to-go of each step, discounted by ``gamma`` (L,), normalized over all live steps of
    the lane's rollout. With ``group_baseline`` ("REINFORCE++-baseline") the group's mean return is
    subtracted first: that of the episodes' first live steps, so with a reward at the end only and
    without discounting it is R - mean at every step, as in verl.
    """
    to_go = return_to_go(rewards, live, gamma)
    if group_baseline:
        first = live.byte().argmax(0, keepdim=True)  # (1, L, N); of equals the first
        means = _mean(_grouped(to_go.gather(0, first), group_size))
        to_go = (_grouped(to_go, group_size) - means).flatten(-2)
    rows, live_rows = (x.transpose(0, 1).flatten(1) for x in (to_go, live))  # (L, T * N)
    return normalize_advantages(rows, live_rows).unflatten(1, (len(live), -1)).transpose(0, 1)


def per_step(rewards: Tensor, live: Tensor, gamma: Tensor, group_size: int) -> Tensor:
    """Return each step's return-to-go minus its group's mean at the same step (T, L, N).

    Group Policy Gradient (arXiv:2510.03679) with one bin per step: the mean is over the members
    that are live there, oneself included, so the last one left has advantages of 0. Discounted by
    ``gamma`` (L,).
    """
    to_go = _grouped(return_to_go(rewards, live, gamma), group_size)  # (T, L, N / G, G), 0 if dead
    num_live = _grouped(live, group_size).sum(-1, keepdim=True)
    means = to_go.sum(-1, keepdim=True) / num_live.clamp(min=1)
    return (to_go - means).flatten(-2).masked_fill(~live, 0.0)


def return_to_go(rewards: Tensor, live: Tensor, gamma: Tensor) -> Tensor:
    """Return the sum of each live step's later rewards and its own, discounted by ``gamma`` (L,).

    Everything else is (T, L, N); dead steps have 0.
    """
    rewards = rewards.masked_fill(~live, 0.0)
    no_values, never = torch.zeros_like(rewards), torch.zeros_like(live)
    ones = torch.ones_like(gamma)
    sums = gae(rewards, no_values, no_values, never, never, gamma=gamma, gae_lambda=ones)
    return sums.advantages.masked_fill(~live, 0.0)


def no_signal_frac(rewards: Tensor, live: Tensor, group_size: int) -> Tensor:
    """Return the share (L,) of groups whose returns are all equal: they teach nothing.

    DAPO samples such groups again (arXiv:2503.14476, section 3.2). Groups of one do not count: with
    nothing to compare it to, a return is its own signal.
    """
    groups = _grouped(_returns(rewards, live), group_size)
    is_equal = groups.amax(-1) == groups.amin(-1)  # (L, N / G)
    return is_equal.float().mean(-1) * float(group_size > 1)


def _returns(rewards: Tensor, live: Tensor) -> Tensor:
    """Return the undiscounted return (L, N) of each episode."""
    # Summed along contiguous memory, in whose order the number of lanes has no part.
    return rewards.masked_fill(~live, 0.0).movedim(0, -1).contiguous().sum(-1)


def _grouped(x: Tensor, group_size: int) -> Tensor:
    """Return ``x`` (…, N) as (…, N / G, G)."""
    return x.unflatten(-1, (-1, group_size))


def _mean(groups: Tensor) -> Tensor:
    """Return the means (…, N / G, 1) of ``groups`` (…, N / G, G), 0 for groups of one."""
    return groups.mean(-1, keepdim=True) * float(groups.shape[-1] > 1)


def _spread(groups: Tensor, live: Tensor) -> Tensor:
    """Return an advantage per episode, (L, N / G, G), at each of its live steps (T, L, N)."""
    return torch.where(live, groups.flatten(-2), 0.0)


@dataclass(kw_only=True)
class Baseline:
    """Base class of what a return is compared to: options are fields, behaviour is methods."""

    name: ClassVar[str]
    """The value of ``baseline=`` on the command line."""
    needs_critic: ClassVar[bool] = False
    normalizes: ClassVar[bool] = False
    """Whether ``advantage_normalization=auto`` normalizes over minibatches."""
    """Whether a critic predicts returns; its advantages are those of ``gae``."""

    def check(self, num_envs: int) -> None:
        """Raise ``ConfigError`` unless the options suit ``num_envs`` environments per lane."""


@dataclass(kw_only=True)
class AutoBaseline(Baseline):
    """Placeholder of ``baseline=auto``, which the config replaces by what suits memory and task."""

    name: ClassVar[str] = "auto"


@dataclass(kw_only=True)
class Gae(Baseline):
    """The critic's predictions, with generalized advantage estimation."""

    name: ClassVar[str] = "gae"
    needs_critic: ClassVar[bool] = True
    normalizes: ClassVar[bool] = True


@dataclass(kw_only=True)
class GroupBaseline(Baseline, ABC):
    """Base class of the baselines that compare episodes which begin alike."""

    min_group_size: ClassVar[int] = 1
    """Fewest members of a group."""

    group_size: int = 8
    """Episodes that begin alike and are compared; must divide num_envs. More give a better mean and
    fewer different beginnings."""

    def check(self, num_envs: int) -> None:
        """Raise ``ConfigError`` unless groups of ``group_size`` divide ``num_envs``."""
        if self.group_size < self.min_group_size or num_envs % self.group_size:
            allowed = f"must be at least {self.min_group_size} and divide num_envs={num_envs}"
            raise ConfigError("baseline.group_size", self.group_size, allowed)

    @abstractmethod
    def advantages(self, rewards: Tensor, live: Tensor, gamma: Tensor) -> Tensor:
        """Return advantages (T, L, N), 0 at dead steps; ``gamma`` is (L,), the others (T, L, N)."""

    def no_signal_frac(self, rewards: Tensor, live: Tensor) -> Tensor:
        """Return the share (L,) of groups whose returns are all equal; arguments (T, L, N)."""
        return no_signal_frac(rewards, live, self.group_size)


@dataclass(kw_only=True)
class OutcomeBaseline(GroupBaseline):
    """Base class of the baselines that compare whole returns; they do not discount."""

    @staticmethod
    @abstractmethod
    def formula(rewards: Tensor, live: Tensor, group_size: int) -> Tensor:
        """Return advantages (T, L, N) in groups of ``group_size``."""

    def advantages(self, rewards: Tensor, live: Tensor, gamma: Tensor) -> Tensor:  # noqa: ARG002
        """See the baseline's ``formula``."""
        return self.formula(rewards, live, self.group_size)


@dataclass(kw_only=True)
class Grpo(OutcomeBaseline):
    """See ``grpo``."""

    name: ClassVar[str] = "grpo"
    formula = staticmethod(grpo)


@dataclass(kw_only=True)
class DrGrpo(OutcomeBaseline):
    """See ``dr_grpo``."""

    name: ClassVar[str] = "dr_grpo"
    formula = staticmethod(dr_grpo)


@dataclass(kw_only=True)
class Rloo(OutcomeBaseline):
    """See ``rloo``."""

    name: ClassVar[str] = "rloo"
    formula = staticmethod(rloo)


@dataclass(kw_only=True)
class ReinforcePP(GroupBaseline):
    """See ``reinforce_pp``."""

    name: ClassVar[str] = "reinforce_pp"

    group_size: int = 1
    """Episodes that begin alike; must divide num_envs. Compared only with group_baseline."""
    group_baseline: bool = False
    """Whether the group's mean return is subtracted before normalization over the rollout. Needs a
    group_size of at least 2."""

    def check(self, num_envs: int) -> None:
        """Raise ``ConfigError`` unless the groups divide ``num_envs`` and suffice for a mean."""
        super().check(num_envs)
        if self.group_baseline and self.group_size < 2:
            allowed = "must be at least 2 with baseline.group_baseline=true"
            raise ConfigError("baseline.group_size", self.group_size, allowed)

    def advantages(self, rewards: Tensor, live: Tensor, gamma: Tensor) -> Tensor:
        """See ``reinforce_pp``."""
        return reinforce_pp(
            rewards, live, gamma, self.group_size, group_baseline=self.group_baseline
        )


@dataclass(kw_only=True)
class PerStep(GroupBaseline):
    """See ``per_step``."""

    name: ClassVar[str] = "per_step"
    min_group_size: ClassVar[int] = 2  # alone, every advantage is 0
    normalizes: ClassVar[bool] = True

    def advantages(self, rewards: Tensor, live: Tensor, gamma: Tensor) -> Tensor:
        """See ``per_step``."""
        return per_step(rewards, live, gamma, self.group_size)


# A new baseline is one line here, its class and one YAML.
BASELINES: dict[str, type[Baseline]] = {
    baseline.name: baseline for baseline in (Gae, Grpo, DrGrpo, Rloo, ReinforcePP, PerStep)
}
