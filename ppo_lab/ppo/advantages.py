"""Generalized advantage estimation.

Shapes: T = steps per rollout, L = lanes, N = environments per lane.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Advantages", "gae"]


class Advantages(NamedTuple):
    """Advantages and the critic's targets."""

    advantages: Tensor  # (T, L, N)
    value_targets: Tensor | None  # (T, L, N) advantages + values; None without a critic


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: Tensor,
    gae_lambda: Tensor,
) -> Advantages:
    """Return generalized advantage estimates (arXiv:1506.02438, eqs. 11, 12 and 16).

    The recursion over T steps is computed in log2(T) doublings, each over all steps at once.

    Tensors are (T, L, N), except ``gamma``, the discount, and ``gae_lambda``: (L,).
    ``next_values`` are those of the observation that each step led to: after a truncation the
    episode's last one, so that a time limit is not a termination (arXiv:1712.00378); after a
    termination they are unused.

    Example:
        One step, with delta 1 + 0.5 * 4 - 2:

        >>> values = [torch.full((1, 1, 1), value) for value in (1.0, 2.0, 4.0)]
        >>> never, half = torch.zeros(1, 1, 1, dtype=torch.bool), torch.tensor([0.5])
        >>> gae(*values, never, never, gamma=half, gae_lambda=half).advantages.item()
        1.0
    """
    gamma, gae_lambda = gamma.unsqueeze(-1), gae_lambda.unsqueeze(-1)  # (L, 1)
    future = gamma * next_values.masked_fill(terminated, 0.0)
    advantages = rewards + future - values  # at first the deltas
    reach = (~(terminated | truncated)) * (gamma * gae_lambda)  # (T, L, N)
    span = 1
    while span < len(advantages):
        # ``advantages`` are weighted sums of ``span`` deltas from each step on; those of the step
        # ``span`` later are added with the weight ``reach``.
        longer = torch.addcmul(
            advantages[:-span], reach[: len(advantages) - span], advantages[span:]
        )
        advantages = torch.cat((longer, advantages[-span:]))
        reach = reach[:-span] * reach[span:]
        span *= 2
    return Advantages(advantages, advantages + values)
