"""Running statistics of observations and returns per lane, and normalisation by them.

The algorithm is that of Stable-Baselines3's VecNormalize (its defaults: clip 10, epsilon 1e-8,
statistics initialised as 1e-4 samples of mean 0 and variance 1), so that its tuned settings
transfer. Statistics are float64: the sums of a long run exceed float32's precision.

Shapes: L = lanes, N = environments per lane, O = observation size, F = features of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CLIP", "EPSILON", "Normalizer", "RunningMoments", "normalize"]

CLIP = 10.0
"""Largest absolute value after normalisation ("The 37 implementation details", continuous 7, 9)."""
EPSILON = 1e-8
"""Added to the variance inside the square root, so that a constant feature divides by 1e-4."""
_INITIAL_COUNT = 1e-4  # weight of the initial statistics: the first batch almost replaces them


def normalize(values: Tensor, *, var: Tensor, mean: Tensor | None = None) -> Tensor:
    """Return (values - mean) / sqrt(var + EPSILON), clipped to +-CLIP, in the dtype of ``values``.

    ``var`` and ``mean`` broadcast against ``values``. Without a mean, rewards keep their sign.

    Example:
        >>> normalize(torch.tensor([[1.0, 7.0]]), var=torch.tensor([[4.0]]), mean=torch.ones(1, 1))
        tensor([[0., 3.]])
    """
    centred = values if mean is None else values - mean
    return centred.mul((var + EPSILON).rsqrt()).clamp_(-CLIP, CLIP).to(values.dtype)


@dataclass(frozen=True, eq=False)
class RunningMoments:
    """Mean and population variance of all samples that each lane has seen, float64.

    Indexing returns a view of some lanes or features, whose updates change the original.
    """

    mean: Tensor  # (L, 1, F), the axis of 1 broadcasts over N; without F for scalar samples
    var: Tensor  # (L, 1, F)
    count: Tensor  # (L, 1, F), the same for all features of a lane

    @classmethod
    def initial(
        cls, num_lanes: int, feature_shape: tuple[int, ...] = (), *, device: torch.device
    ) -> RunningMoments:
        """Return statistics that have seen no sample of ``feature_shape``."""
        shape = (num_lanes, 1, *feature_shape)
        moments = cls(*(torch.empty(shape, dtype=torch.float64, device=device) for _ in range(3)))
        moments.reset()
        return moments

    def reset(self) -> None:
        """Discard all samples."""
        self.mean.zero_()
        self.var.fill_(1.0)
        self.count.fill_(_INITIAL_COUNT)

    def __getitem__(self, index: slice | tuple[object, ...]) -> RunningMoments:
        return RunningMoments(self.mean[index], self.var[index], self.count[index])  # type: ignore[index]

    def update(self, samples: Tensor) -> None:
        """Merge one batch of N samples per lane, (L, N, F), in place.

        By Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance", eq. 2.1,
        divided by the count.
        """
        batch_var, batch_mean = torch.var_mean(samples.double(), dim=1, correction=0, keepdim=True)
        total = self.count + samples.shape[1]
        kept = self.count / total  # the earlier samples' share of the merged set
        shift = batch_mean - self.mean
        # var' = kept var + (1 - kept) (batch_var + kept shift^2)
        spread = torch.addcmul(batch_var, shift * shift, kept)
        torch.lerp(spread, self.var, kept, out=self.var)
        torch.lerp(batch_mean, self.mean, kept, out=self.mean)
        self.count.copy_(total)

    def state_dict(self, prefix: str) -> dict[str, Tensor]:
        """Return copies: "mean" and "var" (L, F), "count" (L,), after ``prefix``."""
        return {
            f"{prefix}mean": self.mean.squeeze(1).clone(),
            f"{prefix}var": self.var.squeeze(1).clone(),
            f"{prefix}count": self.count.flatten(1)[:, 0].clone(),
        }


class Normalizer:
    """Normalises observations, rewards or both by running statistics.

    Rewards are divided by the standard deviation of the discounted return, so that returns are of
    order one. The return is VecNormalize's, R <- gamma R + r over the past of the episode, not the
    future ("The 37 implementation details", continuous 8). One sequence of operations updates the
    statistics of all features: the observation's components, then the return.
    """

    def __init__(self, tensors: Sequence[Tensor], observation_size: int) -> None:
        """Use the statistics in ``tensors``; observation size 0 leaves observations unchanged."""
        self.tensors = list(tensors)
        """Means, variances and counts (L, 1, F), the latest samples (L, N, F), and gamma (L,) if
        rewards are normalised. All but gamma change in each step."""
        mean, var, count, self._samples, *gamma = self.tensors
        self._moments = RunningMoments(mean, var, count)
        self.observations: RunningMoments | None = None
        """Statistics of observations; None if they are not normalised."""
        self.returns: RunningMoments | None = None
        """Statistics of discounted returns; None if rewards are not normalised."""
        if observation_size:
            self.observations = self._moments[..., :observation_size]
            self._latest_observations = self._samples[..., :observation_size]
        if gamma:
            self._gamma = gamma[0].unsqueeze(-1)  # (L, 1), a view: a lane's gamma may change
            self.returns = self._moments[..., observation_size]
            self.latest_returns = self._samples[..., observation_size]  # (L, N)

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
        """Start without samples; ``gamma`` (L,), read and never copied, normalises rewards."""
        num_features = observation_size + (gamma is not None)
        samples = torch.zeros(num_lanes, num_envs, num_features, dtype=torch.float64, device=device)
        moments = RunningMoments.initial(num_lanes, (num_features,), device=device)
        tensors = [moments.mean, moments.var, moments.count, samples]
        return cls(tensors if gamma is None else [*tensors, gamma], observation_size)

    def advance(
        self, observations: Tensor, rewards: Tensor, ended: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Update the statistics with one step; return its normalised observations and rewards.

        The first observations of a new episode are counted, the last ones are not; the return is
        reset to 0 after the step that ended its episode (``ended`` (L, N)) has been counted.
        """
        if self.observations is not None:
            self._latest_observations.copy_(observations)
        if self.returns is not None:
            self.latest_returns.mul_(self._gamma).add_(rewards)
        self._moments.update(self._samples)
        scaled = rewards
        if self.returns is not None:
            scaled = normalize(rewards, var=self.returns.var)
            if ended is not None:
                self.latest_returns.masked_fill_(ended, 0.0)
        return self.normalize(observations), scaled

    def normalize(self, observations: Tensor) -> Tensor:
        """Return ``observations`` (L, N, O) normalised by the current statistics."""
        if self.observations is None:
            return observations
        return normalize(observations, var=self.observations.var, mean=self.observations.mean)

    def reset_returns(self, lane: int | slice = slice(None)) -> None:
        """Set discounted returns to 0, of all lanes or one; the statistics stay."""
        if self.returns is not None:
            self.latest_returns[lane] = 0.0

    def lane_tensors(self, lane: int) -> dict[str, Tensor]:
        """Return views of what each step changes in ``lane``: statistics and latest samples."""
        return {name: t[lane] for name, t in zip(("mean", "var", "count", "latest"), self.tensors)}

    def reset_lane(self, lane: int) -> None:
        """Discard the statistics and returns of ``lane``."""
        self._moments[lane : lane + 1].reset()
        self._samples[lane] = 0.0
