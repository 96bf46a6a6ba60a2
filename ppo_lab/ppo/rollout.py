"""Rollouts, minibatches, and storage of observations on the device or in pinned host memory.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, O = observation size,
R = T * N rows per lane, B = minibatch rows per lane. Actions are int64 (T, L, N) or float
(T, L, N, A).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.networks.sequences import Memory, Sequences
from ppo_lab.ppo.advantages import Advantages
from ppo_lab.ppo.row_weights import Aggregation, row_weights

__all__ = [
    "Batch",
    "HostObservations",
    "ObservationStore",
    "Rollout",
    "RolloutRows",
    "SequenceContext",
    "by_env",
    "lane_rows",
    "minibatches",
]


class Rollout(NamedTuple):
    """T steps of L * N environments."""

    observations: Tensor  # (T, L, N, O) what the policy saw, normalised if the config says so
    actions: Tensor  # (T, L, N[, A]) as sampled, not clipped to the action space
    log_probs: Tensor  # (T, L, N) of the actions, under the policy that took them
    values: Tensor | None  # (T, L, N); None without a critic
    next_values: Tensor | None  # (T, L, N) of the observation each step really led to
    rewards: Tensor  # (T, L, N) what to learn from
    env_rewards: Tensor  # (T, L, N) in the environment's own units
    terminated: Tensor  # (T, L, N) bool
    truncated: Tensor  # (T, L, N) bool
    live: Tensor | None = None  # (T, L, N) bool, the steps to learn from; None for all
    sequences: SequenceContext | None = None  # if the policy reads sequences


class SequenceContext(NamedTuple):
    """What turns the rows of whole sequences into the input of a model that reads them."""

    num_steps: int  # T, rows of a sequence
    starts: Tensor | None  # (L, B * T) bool, see ``Sequences``
    actor_memory: Memory | None = None  # before each sequence, tensors (L, B, …)
    critic_memory: Memory | None = None

    def inputs(self, observations: Tensor) -> Sequences:
        """Return the input of a model for ``observations`` (L, B * T, O)."""
        shape = (-1, self.num_steps)
        starts = None if self.starts is None else self.starts.unflatten(1, shape)
        memories = self.actor_memory, self.critic_memory
        return Sequences(observations.unflatten(1, shape), starts, *memories)

    def select(
        self, rows: Callable[[Tensor], Tensor], sequences: Callable[[Tensor], Tensor]
    ) -> SequenceContext:
        """Return the context of some sequences, given functions that select along their axes."""
        starts = None if self.starts is None else rows(self.starts)
        memories = (
            None if memory is None else tuple(map(sequences, memory))
            for memory in (self.actor_memory, self.critic_memory)
        )
        return SequenceContext(self.num_steps, starts, *memories)


class RolloutRows(NamedTuple):
    """The inputs of an update, as rows per lane."""

    observations: Tensor  # (L, R, O)
    actions: Tensor  # (L, R[, A])
    log_probs: Tensor  # (L, R)
    values: Tensor | None  # (L, R); None without a critic
    advantages: Tensor  # (L, R)
    value_targets: Tensor | None  # (L, R)
    live: Tensor | None = None  # (L, R) bool, the rows to learn from; None for all
    weights: Tensor | None = None  # (L, R) of the rows in the losses, before they are scaled
    sequences: SequenceContext | None = None  # if the policy reads sequences

    def map(self, function: Callable[[Tensor], Tensor]) -> RolloutRows:
        """Return all columns after ``function``; for policies that do not read sequences."""
        columns: tuple[Any, ...] = self
        return RolloutRows._make(None if column is None else function(column) for column in columns)


class Batch(NamedTuple):
    """A minibatch or micro-batch; its observations are gathered when they are needed."""

    row_index: Tensor  # (L, B) counted through all lanes, on the store's device
    actions: Tensor  # (L, B[, A])
    log_probs: Tensor  # (L, B)
    values: Tensor | None  # (L, B)
    advantages: Tensor  # (L, B)
    value_targets: Tensor | None  # (L, B)
    live: Tensor | None = None  # (L, B) bool
    weights: Tensor | None = None  # (L, B)
    sequences: SequenceContext | None = None

    def split(self, num_parts: int) -> list[Batch]:
        """Return equal parts, each with the rows of every lane."""
        if num_parts == 1:
            return [self]
        return [self._part(number, num_parts) for number in range(num_parts)]

    def _part(self, number: int, num_parts: int) -> Batch:
        def part(tensor: Tensor) -> Tensor:
            return tensor.chunk(num_parts, 1)[number]

        context = self.sequences and self.sequences.select(part, part)
        columns = (None if column is None else part(column) for column in self[:-1])
        return Batch._make([*columns, context])


def lane_rows(
    rollout: Rollout, advantages: Advantages, aggregation: Aggregation = Aggregation.token_mean
) -> RolloutRows:
    """Merge the time and environment axes; a collected rollout gives views.

    The rows of an environment follow each other if not all are live or the policy reads sequences.
    """
    # (T, L, N, …), in the order of ``RolloutRows``
    columns: list[Any] = [*rollout[:4], *advantages, rollout.live]
    is_by_env = rollout.live is not None or rollout.sequences is not None
    merge = by_env if is_by_env else _by_step
    merged = [None if column is None else merge(column) for column in columns]
    rows = RolloutRows._make([*merged, None, None])
    if rows.live is None:
        return rows._replace(sequences=rollout.sequences)
    weights = row_weights(rows.live, len(rollout.rewards), aggregation)
    return rows._replace(weights=weights.to(rows.advantages.dtype), sequences=rollout.sequences)


def by_env(column: Tensor) -> Tensor:
    """Return the rows (L, N * T, …) of (T, L, N, …): those of an environment follow each other."""
    return column.transpose(0, 1).transpose(1, 2).flatten(1, 2)


def _by_step(column: Tensor) -> Tensor:
    return column.transpose(0, 1).flatten(1, 2)


def minibatches(
    rows: RolloutRows, permutations: Tensor, num_minibatches: int, store: ObservationStore
) -> Iterator[Batch]:
    """Yield shuffled minibatches; each row appears once per epoch of ``permutations`` (E, L, R).

    If the policy reads sequences, the rows of each follow each other in the permutations.
    """
    num_lanes, num_rows = permutations.shape[1:]
    first_row = torch.arange(num_lanes, device=permutations.device).unsqueeze(-1) * num_rows
    columns = [None if tensor is None else tensor.flatten(0, 1) for tensor in rows[1:-1]]
    context = rows.sequences and rows.sequences.select(_merge_lanes, _merge_lanes)
    for order in permutations.unbind(0):
        index = order + first_row  # (L, R), counted through all lanes
        parts = index.chunk(num_minibatches, -1)  # (L, B)
        kept_parts = store.index_to_store(index).chunk(num_minibatches, -1)
        for part, kept_part in zip(parts, kept_parts):
            chosen = (None if t is None else _choose(t, part) for t in columns)
            of_part = context and _choose_sequences(context, part)
            yield Batch._make([kept_part, *chosen, of_part])


def _merge_lanes(tensor: Tensor) -> Tensor:
    return tensor.flatten(0, 1)


def _choose(tensor: Tensor, index: Tensor) -> Tensor:
    """Return the rows (L, B, …) of ``tensor`` (L * R, …) at ``index`` (L, B)."""
    return tensor.index_select(0, index.flatten()).unflatten(0, index.shape)


def _choose_sequences(context: SequenceContext, index: Tensor) -> SequenceContext:
    """Return the context of a minibatch from that of all lanes' rows, (L * R, …)."""
    sequence_index = index[:, :: context.num_steps] // context.num_steps
    return context.select(
        lambda rows: _choose(rows, index), lambda memory: _choose(memory, sequence_index)
    )


class ObservationStore:
    """Storage of a rollout's observations on the device: nothing is transferred."""

    def allocate(self, num_steps: int, observations: Tensor) -> Tensor:
        """Return storage (L, T, N, O) for ``num_steps`` of ``observations`` (L, N, O)."""
        num_lanes, *shape = observations.shape
        return observations.new_empty(num_lanes, num_steps, *shape)

    def write(self, out: Tensor, observations: Tensor) -> None:
        """Copy (L, t, N, O) from the device into that part of the storage."""
        out.copy_(observations)

    def synchronize(self) -> None:
        """Wait until everything written can be read: at once, as a device works in order."""

    def index_to_store(self, index: Tensor) -> Tensor:
        """Return an epoch's order of rows ``index`` (L, R) on the device that ``gather`` needs."""
        return index

    def gather(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return the rows (L, b, O) of ``rows`` (L, R, O) at ``index`` (L, b), on the device.

        ``index`` counts through all lanes: row r of lane l is l * R + r.
        """
        return rows.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape)

    def slice(self, rows: Tensor, begin: int, end: int) -> Tensor:
        """Return the rows (L, b, O) of ``rows`` (L, R, O) from ``begin`` to ``end``."""
        return rows[:, begin:end]


class HostObservations(ObservationStore):
    """Observations in host memory, pinned with CUDA; rows are transferred each time they are used.

    An iteration copies observations and last observations to the host (2 * L * R * O numbers), both
    to the device for their values and the former again for the policy after the update
    (3 * L * R * O). Each epoch of each pass copies every row to the device (L * R * O) and its
    index to the host (8 bytes).
    """

    def __init__(self, placement: Placement) -> None:
        """Transfer through ``placement``, which counts the bytes."""
        self._placement = placement

    def allocate(self, num_steps: int, observations: Tensor) -> Tensor:
        """Return pinned storage on the host."""
        num_lanes, *shape = observations.shape
        return self._placement.empty_host(
            num_lanes, num_steps, *shape, dtype=observations.dtype, pin=True
        )

    def write(self, out: Tensor, observations: Tensor) -> None:
        """Copy each lane's part, which is contiguous on both sides."""
        for lane_out, lane in zip(out.unbind(0), observations.unbind(0)):
            self._placement.move(lane, Place.host, out=lane_out, non_blocking=True)

    def synchronize(self) -> None:
        """Wait for the copies to the host."""
        if self._placement.is_cuda:
            torch.cuda.current_stream(self._placement.device).synchronize()

    def index_to_store(self, index: Tensor) -> Tensor:
        """Return a copy on the host, which gathers; synchronizes."""
        return self._placement.move(index, Place.host)

    def gather(self, rows: Tensor, index: Tensor) -> Tensor:
        """Gather on the host, then copy to the device."""
        flat, chosen = rows.flatten(0, 1), index.flatten()
        # The pinned allocator reuses a freed block only after the copies from it.
        packed = self._placement.empty_host(len(chosen), flat.shape[-1], dtype=flat.dtype, pin=True)
        torch.index_select(flat, 0, chosen, out=packed)
        moved = self._placement.move(packed, Place.device, non_blocking=True)
        return moved.unflatten(0, index.shape)

    def slice(self, rows: Tensor, begin: int, end: int) -> Tensor:
        """Copy the rows to the device."""
        return self._placement.move(rows[:, begin:end], Place.device, non_blocking=True)
