"""Action distributions, as functions of a policy head's outputs.

Shapes: L = lanes, … = any leading axes, P = distribution parameters per row, A = actions or action
dimensions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ppo_lab.envs.base import ContinuousActions, DiscreteActions
from ppo_lab.utils import rng

__all__ = ["Categorical", "DiagonalGaussian", "Distribution", "distribution_for"]

_MAX_GUMBEL_ACTIONS = 256  # of more, a sample takes one random number, not one per action
_UNITS = 2**30  # of probability, as counted by ``_inverse_cdf``


class Distribution(ABC):
    """A family of distributions; its instances hold sizes, no tensors."""

    num_parameters: int  # P, of one distribution
    noise_size: int  # random numbers per action
    has_free_std: ClassVar[bool]  # whether half of the parameters are a learned log deviation
    max_entropy: float | None = None  # the largest possible in nats; None if there is none

    @abstractmethod
    def noise(self, keys: Tensor, num_draws: int, dtype: torch.dtype) -> Tensor:
        """Return noise (L, num_draws, noise_size) for ``sample`` from lane ``keys`` (L,)."""

    @abstractmethod
    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Return actions for ``parameters`` (…, P) and ``noise`` (…, noise_size)."""

    @abstractmethod
    def mode(self, parameters: Tensor) -> Tensor:
        """Return the most likely actions, those of a deterministic policy."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Return the log probabilities (or densities) (…) of ``actions``."""

    @abstractmethod
    def entropy(self, parameters: Tensor) -> Tensor:
        """Return the entropy in nats, (…)."""

    def log_prob_and_entropy(self, parameters: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, for the update."""
        return self.log_prob(parameters, actions), self.entropy(parameters)


class Categorical(Distribution):
    """One of A actions; the parameters are unnormalised log probabilities."""

    has_free_std = False

    def __init__(self, num_actions: int) -> None:
        """Set A to ``num_actions``."""
        self.num_parameters = num_actions
        self._uses_gumbel = num_actions <= _MAX_GUMBEL_ACTIONS
        self.noise_size = num_actions if self._uses_gumbel else 1
        if num_actions > 1:
            self.max_entropy = math.log(num_actions)  # of the uniform policy

    def noise(self, keys: Tensor, num_draws: int, dtype: torch.dtype) -> Tensor:
        """Return Gumbel noise: the argmax of logits plus noise is a sample (Gumbel-max trick).

        For many actions, return uniform numbers, at which the inverse of the distribution function
        is a sample.
        """
        u = rng.uniform(keys, num_draws * self.noise_size, dtype=dtype)
        if not self._uses_gumbel:
            return u.unsqueeze(-1)
        return u.log_().neg_().log_().neg_().unflatten(-1, (num_draws, self.noise_size))

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Return int64 actions (…)."""
        if not self._uses_gumbel:
            return _inverse_cdf(parameters, noise)
        return (parameters + noise).argmax(-1)

    def mode(self, parameters: Tensor) -> Tensor:
        """Return int64 actions (…)."""
        return parameters.argmax(-1)

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Return log probabilities; ``actions`` int64 (…)."""
        return _pick(parameters.log_softmax(-1), actions)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Return - sum p log p."""
        return _entropy(parameters.log_softmax(-1))

    def log_prob_and_entropy(self, parameters: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return both from one softmax."""
        log_probs = parameters.log_softmax(-1)
        return _pick(log_probs, actions), _entropy(log_probs)


class DiagonalGaussian(Distribution):
    """Independent normal dimensions; the parameters are A means and then A log deviations."""

    has_free_std = True

    def __init__(self, num_dimensions: int) -> None:
        """Set A to ``num_dimensions``."""
        self.num_parameters, self.noise_size = 2 * num_dimensions, num_dimensions

    def noise(self, keys: Tensor, num_draws: int, dtype: torch.dtype) -> Tensor:
        """Return standard normal numbers."""
        z = rng.normal(keys, num_draws * self.noise_size, dtype=dtype)
        return z.unflatten(-1, (num_draws, self.noise_size))

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Return float actions (…, A), not clipped to the action space."""
        mean, log_std = parameters.chunk(2, -1)
        return torch.addcmul(mean, log_std.exp(), noise)

    def mode(self, parameters: Tensor) -> Tensor:
        """Return the means (…, A)."""
        return parameters.chunk(2, -1)[0]

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Return log densities, summed over dimensions; ``actions`` float (…, A)."""
        mean, log_std = parameters.chunk(2, -1)
        z = (actions - mean) * (-log_std).exp()
        return -(0.5 * z.square() + log_std).sum(-1) - 0.5 * self.noise_size * math.log(math.tau)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Return the differential entropy, which may be negative."""
        log_std = parameters.chunk(2, -1)[1]
        return log_std.sum(-1) + 0.5 * self.noise_size * (1.0 + math.log(math.tau))


def _inverse_cdf(logits: Tensor, u: Tensor) -> Tensor:
    """Return the first action (…) whose cumulative probability exceeds ``u`` (…, 1) in (0, 1).

    Probabilities are rounded to units of 2^-30. Sums of integers are exact, in any order: actions
    of probability 0 are never returned, and every device returns the same.
    """
    probabilities = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    cumulative = probabilities.mul_(_UNITS).round_().to(torch.int32).cumsum(-1, dtype=torch.int32)
    thresholds = (u.double() * cumulative[..., -1:]).to(torch.int32)
    actions = torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1)
    return actions.clamp_(max=logits.shape[-1] - 1)  # out of range for NaN only


def _pick(log_probs: Tensor, actions: Tensor) -> Tensor:
    return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(-1)


def distribution_for(actions: DiscreteActions | ContinuousActions) -> Distribution:
    """Return the distribution for an action space.

    Example:
        >>> distribution_for(DiscreteActions(2)).entropy(torch.zeros(1, 2))
        tensor([0.6931])
    """
    if isinstance(actions, DiscreteActions):
        return Categorical(actions.num_actions)
    return DiagonalGaussian(len(actions.low))
