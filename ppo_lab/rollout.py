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
from ppo_lab.observations import ObservationStore

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


class Batch(NamedTuple):
    """A minibatch, or a part of one; its observations are taken when they are needed."""

    row_index: Tensor  # (L, B) of its rows, counted through all lanes, where observations are kept
    actions: Tensor  # (L, B[, A])
    log_probs: Tensor  # (L, B)
    values: Tensor  # (L, B)
    advantages: Tensor  # (L, B)
    value_targets: Tensor  # (L, B)

    def split(self, num_parts: int) -> list[Batch]:
        """Return equal parts, each with the rows of every lane."""
        if num_parts == 1:
            return [self]
        return [Batch(*part) for part in zip(*(tensor.chunk(num_parts, 1) for tensor in self))]


def lane_rows(rollout: Rollout, advantages: Advantages) -> RolloutRows:
    """Return the rollout with its time and environment axes merged; of collected ones, views."""

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


def minibatches(
    rows: RolloutRows, orders: Tensor, num_minibatches: int, store: ObservationStore
) -> Iterator[Batch]:
    """Deal out every row of every lane once per epoch, in ``orders`` (E, L, R), one per lane."""
    num_lanes, num_rows = orders.shape[1:]
    first_row = torch.arange(num_lanes, device=orders.device).unsqueeze(-1) * num_rows
    columns = [tensor.flatten(0, 1) for tensor in rows[1:]]  # (L * R, …)
    for order in orders.unbind(0):
        index = order + first_row  # (L, R), counted through all lanes
        parts = index.chunk(num_minibatches, -1)  # (L, B)
        kept_parts = store.place_order(index).chunk(num_minibatches, -1)
        for part, kept_part in zip(parts, kept_parts):
            chosen = part.flatten()
            yield Batch(
                kept_part, *(t.index_select(0, chosen).unflatten(0, part.shape) for t in columns)
            )
