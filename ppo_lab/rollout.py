"""One rollout, and how it is dealt out in minibatches.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, O = observation size,
B = minibatch rows per lane. Actions are int64 (T, L, N) or
float (T, L, N, A).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.advantages import Advantages

__all__ = ["Batch", "Rollout", "RolloutRows", "lane_rows", "minibatches"]


class Rollout(NamedTuple):
    """What T steps of L * N environments produced."""

    observations: Tensor  # (T, L, N, O) what the policy saw, normalised if the config says so
    actions: Tensor  # (T, L, N[, A]) as sampled, not clipped to the action space
    log_probs: Tensor  # (T, L, N) of the actions, under the policy that took them
    values: Tensor  # (T, L, N)
    next_values: Tensor  # (T, L, N) of the observation each step really led to
    rewards: Tensor  # (T, L, N) what to learn from
    env_rewards: Tensor  # (T, L, N) in the environment's own units
    terminated: Tensor  # (T, L, N) bool
    truncated: Tensor  # (T, L, N) bool


class RolloutRows(NamedTuple):
    """What the update needs, as rows per lane; R = T * N."""

    observations: Tensor  # (L, R, O)
    actions: Tensor  # (L, R[, A])
    log_probs: Tensor  # (L, R)
    values: Tensor  # (L, R)
    advantages: Tensor  # (L, R)
    value_targets: Tensor  # (L, R)


Batch = RolloutRows  # a minibatch has the same fields with B rows


def lane_rows(rollout: Rollout, advantages: Advantages) -> RolloutRows:
    """Return the rollout with its time and environment axes merged; a copy only when L > 1."""

    def rows(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1).flatten(1, 2)  # (T, L, N, …) to (L, T * N, …)

    return RolloutRows(
        rows(rollout.observations),
        rows(rollout.actions),
        rows(rollout.log_probs),
        rows(rollout.values),
        rows(advantages.advantages),
        rows(advantages.value_targets),
    )


def minibatches(rows: RolloutRows, order: Tensor, num_minibatches: int) -> Iterator[Batch]:
    """Deal out every row of every lane once, in the order given: int64 (L, R), one per lane."""
    num_lanes, num_rows = order.shape
    first_row = torch.arange(num_lanes, device=order.device).unsqueeze(-1) * num_rows
    flat = [tensor.flatten(0, 1) for tensor in rows]  # (L * R, …)
    for part in (order + first_row).chunk(num_minibatches, -1):  # (L, B)
        index = part.flatten()
        yield Batch(*(t.index_select(0, index).unflatten(0, part.shape) for t in flat))
