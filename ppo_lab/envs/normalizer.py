"""What a normalised environment knows of its numbers, and what it makes of a step's.

A step is small and its operations are many, so observations and discounted returns are counted in
one set of operations: a sample is an observation with the return behind it.

Shapes: L = lanes, N = environments per lane, O = observation size (0 where observations are left as
they are), F = features of a sample: O, and one more where rewards are normalised.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppo_lab.normalization import DiscountedReturns, RunningMoments, normalize

__all__ = ["Normalizer"]

_NUM_MOMENTS = 3  # of the tensors, the first ones


class Normalizer:
    """Counts observations, discounted returns or both, and scales by what it has counted."""

    def __init__(self, tensors: Sequence[Tensor], observation_size: int) -> None:
        """Take the statistics that ``tensors``, as the property lists them, hold."""
        self.tensors = list(tensors)
        """Means, variances and counts (L, 1, F), the samples counted last (L, N, F), and gamma
        (L,) where rewards are normalised. All but gamma change in each step."""
        self.observations: RunningMoments | None = None
        """The moments of observations; None where they are left as they are."""
        self.returns: DiscountedReturns | None = None
        """The returns; None where rewards are left as they are."""
        self._samples, *gamma = self.tensors[_NUM_MOMENTS:]
        self._moments = RunningMoments.of(self.tensors[:_NUM_MOMENTS])
        if observation_size:
            of_observations = slice(0, observation_size)
            self.observations = self._moments.part((..., of_observations))
            self._observed = self._samples[..., of_observations]
        if gamma:
            self.returns = DiscountedReturns(
                gamma[0],
                self._moments.part((..., observation_size)),
                self._samples[..., observation_size],
            )

    @classmethod
    def begin(
        cls,
        num_lanes: int,
        num_envs: int,
        observation_size: int,
        *,
        gamma: Tensor | None,
        device: torch.device,
    ) -> Normalizer:
        """Return one that has seen nothing; ``gamma`` (L,), read and never copied, for rewards."""
        num_features = observation_size + (gamma is not None)
        samples = torch.zeros(num_lanes, num_envs, num_features, dtype=torch.float64, device=device)
        moments = RunningMoments(num_lanes, (num_features,), device=device)
        return cls(
            [*moments.tensors, samples, *([] if gamma is None else [gamma])], observation_size
        )

    def advance(
        self, observations: Tensor, rewards: Tensor, ended: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Count a step, with ``ended`` (L, N) or None for nowhere; return it normalised.

        The first observations (L, N, O) of a new episode count, the last ones do not; its return
        begins at 0 after the rewards (L, N) of the step that ended the one before.
        """
        if self.observations is not None:
            self._observed.copy_(observations)
        if self.returns is not None:
            self.returns.advance(rewards)
        self._moments.update(self._samples)
        scaled = self.scale(rewards)
        if self.returns is not None and ended is not None:
            self.returns.end_episodes(ended)
        return self.normalize(observations), scaled

    def count_observations(self, observations: Tensor) -> None:
        """Count first observations (L, N, O), which no reward came with."""
        if self.observations is not None:
            self.observations.update(observations)

    def normalize(self, observations: Tensor) -> Tensor:
        """Return ``observations`` (L, N, O) normalised with the statistics as they are."""
        if self.observations is None:
            return observations
        return normalize(observations, var=self.observations.var, mean=self.observations.mean)

    def scale(self, rewards: Tensor) -> Tensor:
        """Return the rewards (L, N) to learn from, with the statistics as they are."""
        return rewards if self.returns is None else self.returns.scale(rewards)

    def restart_lane(self, lane: int) -> None:
        """Forget what ``lane`` has seen."""
        self._moments.restart_lane(lane)
        self._samples[lane] = 0.0
