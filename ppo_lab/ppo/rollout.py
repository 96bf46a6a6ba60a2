"""One rollout, and how it is dealt out in minibatches.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, O = observation size,
B = minibatch rows per lane. Actions are int64 (T, L, N) or
float (T, L, N, A).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.ppo.advantages import Advantages

__all__ = [
    "Batch",
    "DeviceObservations",
    "HostObservations",
    "ObservationStore",
    "Rollout",
    "RolloutRows",
    "lane_rows",
    "minibatches",
]


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
    rows: RolloutRows, permutations: Tensor, num_minibatches: int, store: ObservationStore
) -> Iterator[Batch]:
    """Yield shuffled minibatches; each row appears once per epoch of ``permutations`` (E, L, R)."""
    num_lanes, num_rows = permutations.shape[1:]
    first_row = torch.arange(num_lanes, device=permutations.device).unsqueeze(-1) * num_rows
    columns = [tensor.flatten(0, 1) for tensor in rows[1:]]  # (L * R, …)
    for order in permutations.unbind(0):
        index = order + first_row  # (L, R), counted through all lanes
        parts = index.chunk(num_minibatches, -1)  # (L, B)
        kept_parts = store.index_to_store(index).chunk(num_minibatches, -1)
        for part, kept_part in zip(parts, kept_parts):
            chosen = part.flatten()
            yield Batch(
                kept_part, *(t.index_select(0, chosen).unflatten(0, part.shape) for t in columns)
            )


class ObservationStore(ABC):
    """Keeps observations; what is in use lies on the device."""

    @abstractmethod
    def allocate(self, num_steps: int, observations: Tensor) -> Tensor:
        """Return storage (L, T, N, O) for ``num_steps`` of ``observations`` (L, N, O)."""

    @abstractmethod
    def write(self, out: Tensor, observations: Tensor) -> None:
        """Copy (L, t, N, O) from the device into that part of the storage."""

    @abstractmethod
    def synchronize(self) -> None:
        """Return when everything written can be read."""

    @abstractmethod
    def index_to_store(self, index: Tensor) -> Tensor:
        """Return ``index`` (L, R), all rows in an epoch's order, where ``take`` wants it."""

    @abstractmethod
    def gather(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return the rows (L, b, O) of ``rows`` (L, R, O) that ``index`` (L, b) names.

        ``index`` counts through all lanes: row r of lane l is l * R + r.
        """

    @abstractmethod
    def slice(self, rows: Tensor, begin: int, end: int) -> Tensor:
        """Return the rows (L, b, O) of ``rows`` (L, R, O) from ``begin`` to ``end``."""


class DeviceObservations(ObservationStore):
    """On the device: nothing moves."""

    def allocate(self, num_steps: int, observations: Tensor) -> Tensor:
        """See ``ObservationStore.allocate``."""
        num_lanes, *shape = observations.shape
        return observations.new_empty(num_lanes, num_steps, *shape)

    def write(self, out: Tensor, observations: Tensor) -> None:
        """See ``ObservationStore.write``."""
        out.copy_(observations)

    def synchronize(self) -> None:
        """Nothing to wait for: the device reads in the order it wrote."""

    def index_to_store(self, index: Tensor) -> Tensor:
        """Return ``index`` as it is."""
        return index

    def gather(self, rows: Tensor, index: Tensor) -> Tensor:
        """See ``ObservationStore.take``."""
        return rows.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape)

    def slice(self, rows: Tensor, begin: int, end: int) -> Tensor:
        """Return a view."""
        return rows[:, begin:end]


class HostObservations(ObservationStore):
    """In host memory, pinned where there is CUDA; rows cross the bus each time they are used.

    An iteration sends observations and last observations down (2 * L * R * O numbers), both up for
    their values and the former once more for the policy after the update (3 * L * R * O), and each
    epoch of each pass every row up (L * R * O) and its number down (8 bytes).
    """

    def __init__(self, placement: Placement) -> None:
        """Count what moves in ``placement``."""
        self._placement = placement

    def allocate(self, num_steps: int, observations: Tensor) -> Tensor:
        """See ``ObservationStore.allocate``."""
        num_lanes, *shape = observations.shape
        return self._placement.empty_host(
            num_lanes, num_steps, *shape, dtype=observations.dtype, pin=True
        )

    def write(self, out: Tensor, observations: Tensor) -> None:
        """Send each lane's part, which is one piece of memory on both sides."""
        for lane_out, lane in zip(out.unbind(0), observations.unbind(0)):
            self._placement.move(lane, Place.host, out=lane_out, non_blocking=True)

    def synchronize(self) -> None:
        """Wait for the copies, which the host reads next."""
        if self._placement.is_cuda:
            torch.cuda.current_stream(self._placement.device).synchronize()

    def index_to_store(self, index: Tensor) -> Tensor:
        """Return a copy on the host, which gathers; waits for it."""
        return self._placement.move(index, Place.host)

    def gather(self, rows: Tensor, index: Tensor) -> Tensor:
        """Gather on the host, send the result up."""
        flat, chosen = rows.flatten(0, 1), index.flatten()
        # The allocator of pinned memory keeps a freed block until the copies from it are done.
        packed = self._placement.empty_host(len(chosen), flat.shape[-1], dtype=flat.dtype, pin=True)
        torch.index_select(flat, 0, chosen, out=packed)
        return self._placement.move(packed, Place.device, non_blocking=True).unflatten(
            0, index.shape
        )

    def slice(self, rows: Tensor, begin: int, end: int) -> Tensor:
        """Send the rows up."""
        return self._placement.move(rows[:, begin:end], Place.device, non_blocking=True)
