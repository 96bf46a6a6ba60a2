"""Running statistics of observations and rewards, one set per lane, and what is done with them.

The algorithm is the one Stable-Baselines3's VecNormalize publishes (its defaults: clip 10, epsilon
1e-8, statistics that begin as 1e-4 samples of mean 0 and variance 1), so that tuned settings carry
over. Statistics are float64 whatever the observations are: the sums of a long run do not fit into
float32.

Shapes: L = lanes, N = environments per lane, F = features of one sample (no axis for returns).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import EllipsisType

import torch
from torch import Tensor

__all__ = ["CLIP", "EPSILON", "DiscountedReturns", "Normalizer", "RunningMoments", "normalize"]

CLIP = 10.0
"""Largest absolute value after normalisation ("The 37 implementation details", continuous 7, 9)."""

EPSILON = 1e-8
"""Added to the variance inside the square root, so that a constant feature divides by 1e-4."""

_INITIAL_COUNT = 1e-4
"""Weight of the statistics' start; VecNormalize's, so that the first batch all but replaces it."""


def normalize(values: Tensor, *, var: Tensor, mean: Tensor | None = None) -> Tensor:
    """Return (values - mean) / sqrt(var + EPSILON), clipped to +-CLIP, in the dtype of ``values``.

    Args:
        values: (L, N, F) or (L, N).
        var: Statistics that broadcast against ``values``, such as (L, 1, F).
        mean: The same for the mean; left out, nothing is subtracted (rewards keep their sign).
    """
    centred = values if mean is None else values - mean
    return centred.mul((var + EPSILON).rsqrt()).clamp_(-CLIP, CLIP).to(values.dtype)


def _merge(mean: Tensor, var: Tensor, count: Tensor, samples: Tensor) -> None:
    """Merge ``samples`` (L, N, F) into the statistics (L, 1, F), in place.

    Batches are merged by Chan, Golub and LeVeque's parallel formula (1983, "Algorithms for
    computing the sample variance", eq. 2.1).
    """
    batch_var, batch_mean = torch.var_mean(samples.double(), dim=1, correction=0, keepdim=True)
    total = count + samples.shape[1]
    kept = count / total  # the share of what was there before in the merged set
    shift = batch_mean - mean
    # var' = kept var + (1 - kept) (batch_var + kept shift^2): the formula, divided by the count
    spread = torch.addcmul(batch_var, shift * shift, kept)
    torch.lerp(spread, var, kept, out=var)
    torch.lerp(batch_mean, mean, kept, out=mean)
    count.copy_(total)


class RunningMoments:
    """Mean and population variance of all samples a lane has seen, (L, F) each, float64.

    Features that are mostly counted together can share their storage: one set of operations then
    serves them all, and ``part`` counts some of them alone.
    """

    def __init__(
        self, num_lanes: int, feature_shape: tuple[int, ...] = (), *, device: torch.device
    ) -> None:
        """Begin ``num_lanes`` sets of statistics for samples of ``feature_shape``."""
        shape = (num_lanes, 1, *feature_shape)  # the axis of N kept at 1: it broadcasts as it is
        self._take(
            torch.zeros(shape, dtype=torch.float64, device=device),
            torch.ones(shape, dtype=torch.float64, device=device),
            torch.full(shape, _INITIAL_COUNT, dtype=torch.float64, device=device),
        )

    def _take(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        self._mean, self._var, self._count = mean, var, count  # (L, 1, F)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> RunningMoments:
        """Return the statistics that ``tensors``, as ``RunningMoments.tensors`` lists them, are."""
        moments = cls.__new__(cls)
        moments._take(*tensors)
        return moments

    @property
    def tensors(self) -> list[Tensor]:
        """All that an update changes: means, variances and counts, (L, 1, F) each."""
        return [self._mean, self._var, self._count]

    def part(self, features: tuple[EllipsisType, slice | int]) -> RunningMoments:
        """Return a view of some features, as an index of the last axis names them."""
        return RunningMoments.of([tensor[features] for tensor in self.tensors])

    @property
    def mean(self) -> Tensor:
        """Return the means with an axis of 1 for N, (L, 1, F)."""
        return self._mean

    @property
    def var(self) -> Tensor:
        """Return the variances with an axis of 1 for N, (L, 1, F)."""
        return self._var

    def update(self, samples: Tensor) -> None:
        """Merge one batch of N samples per lane, (L, N, F)."""
        _merge(self._mean, self._var, self._count, samples)

    def update_lane(self, lane: int, samples: Tensor) -> None:
        """Merge the batch of one lane, (N, F), and leave the others as they are."""
        own = slice(lane, lane + 1)
        _merge(self._mean[own], self._var[own], self._count[own], samples.unsqueeze(0))

    def reset_lane(self, lane: int) -> None:
        """Forget what ``lane`` has seen."""
        self._mean[lane] = 0.0
        self._var[lane] = 1.0
        self._count[lane] = _INITIAL_COUNT

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies: "mean" and "var" (L, F), "count" (L,)."""
        return {
            "mean": self._mean.squeeze(1).clone(),
            "var": self._var.squeeze(1).clone(),
            "count": self._count.flatten(1)[:, 0].clone(),  # all features of a set count alike
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over statistics of the same shapes as ``state_dict`` returns."""
        self._mean.copy_(state["mean"].unsqueeze(1))
        self._var.copy_(state["var"].unsqueeze(1))
        self._count.copy_(state["count"].reshape(-1, *[1] * (self._count.ndim - 1)))


class DiscountedReturns:
    """Scales rewards by the spread of the discounted return, so that returns are of order one.

    The return is VecNormalize's, R <- gamma R + r over the past of the episode, not the future: it
    has the right spread and needs no look ahead ("The 37 implementation details", continuous 8).
    """

    def __init__(self, gamma: Tensor, moments: RunningMoments, returns: Tensor) -> None:
        """Scale by ``moments`` of ``returns`` (L, N), float64, which whoever advances them counts.

        ``gamma`` (L,) is read at each step, never copied.
        """
        self._gamma = gamma.unsqueeze(-1)  # (L, 1), a view: a lane's gamma may be changed in place
        self.moments, self.returns = moments, returns

    def advance(self, rewards: Tensor) -> None:
        """Advance every return by one step's ``rewards`` (L, N)."""
        self.returns.mul_(self._gamma).add_(rewards)

    def scale(self, rewards: Tensor) -> Tensor:
        """Return ``rewards`` (L, N) divided by the returns' standard deviation, clipped."""
        return normalize(rewards, var=self.moments.var)

    def end_episodes(self, ended: Tensor) -> None:
        """Set the return to 0 where ``ended`` (L, N) is true: after the step was counted."""
        self.returns.masked_fill_(ended, 0.0)

    def reset(self) -> None:
        """Set all returns to 0; the statistics stay."""
        self.returns.zero_()


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

    def reset_lane(self, lane: int) -> None:
        """Forget what ``lane`` has seen."""
        self._moments.reset_lane(lane)
        self._samples[lane] = 0.0
