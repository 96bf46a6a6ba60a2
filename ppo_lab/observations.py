"""Where the observations of a rollout wait, and how rows of them reach the device.

Observations are the one wide column of a rollout; all others take a few bytes a row and stay on the
device.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, O = observation size,
R = T * N rows per lane, b = rows per lane in use at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ppo_lab.devices.placement import Place, Placement

__all__ = ["DeviceObservations", "HostObservations", "ObservationStore"]


class ObservationStore(ABC):
    """Keeps observations; what is in use lies on the device."""

    @abstractmethod
    def allocate(self, num_steps: int, observations: Tensor) -> Tensor:
        """Return storage (L, T, N, O) for ``num_steps`` of ``observations`` (L, N, O)."""

    @abstractmethod
    def write(self, out: Tensor, observations: Tensor) -> None:
        """Copy (L, t, N, O) from the device into that part of the storage."""

    @abstractmethod
    def settle(self) -> None:
        """Return when everything written can be read."""

    @abstractmethod
    def place_order(self, index: Tensor) -> Tensor:
        """Return ``index`` (L, R), all rows in an epoch's order, where ``take`` wants it."""

    @abstractmethod
    def take(self, rows: Tensor, index: Tensor) -> Tensor:
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

    def settle(self) -> None:
        """Nothing to wait for: the device reads in the order it wrote."""

    def place_order(self, index: Tensor) -> Tensor:
        """Return ``index`` as it is."""
        return index

    def take(self, rows: Tensor, index: Tensor) -> Tensor:
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

    def settle(self) -> None:
        """Wait for the copies, which the host reads next."""
        if self._placement.is_cuda:
            torch.cuda.current_stream(self._placement.device).synchronize()

    def place_order(self, index: Tensor) -> Tensor:
        """Return a copy on the host, which gathers; waits for it."""
        return self._placement.move(index, Place.host)

    def take(self, rows: Tensor, index: Tensor) -> Tensor:
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
