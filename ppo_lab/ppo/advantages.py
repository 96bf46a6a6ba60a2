"""How much better an action was than expected.

Shapes: T = steps per rollout, L = lanes, N = environments per lane.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Advantages", "gae"]


class Advantages(NamedTuple):
    """Advantages and the critic's regression targets."""

    advantages: Tensor  # (T, L, N)
    value_targets: Tensor  # (T, L, N) advantages + values


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
    """Return generalised advantage estimates (arXiv:1506.02438, eqs. 11, 12 and 16).

    ``next_values`` is the value of the observation each step really led to: after a truncation
    that of the episode's true last observation, so that a time limit does not look like a death
    (arXiv:1712.00378). After a termination it is not used. All inputs (T, L, N), ``gamma`` and
    ``gae_lambda`` (L,).

    The recursion over T steps is done in log2(T) doublings, each over all steps at once.
    """
    gamma, gae_lambda = gamma.unsqueeze(-1), gae_lambda.unsqueeze(-1)  # (L, 1)
    future = gamma * next_values.masked_fill(terminated, 0.0)
    advantages = rewards + future - values  # the deltas, to begin with
    reach = (~(terminated | truncated)) * (gamma * gae_lambda)  # (T, L, N)
    span = 1
    while span < len(advantages):
        # ``advantages`` add up ``span`` deltas from each step on; the next ``span`` are those of
        # the step ``span`` later, and ``reach`` is the weight they have here.
        longer = torch.addcmul(
            advantages[:-span], reach[: len(advantages) - span], advantages[span:]
        )
        advantages = torch.cat((longer, advantages[-span:]))
        reach = reach[:-span] * reach[span:]
        span *= 2
    return Advantages(advantages, advantages + values)
