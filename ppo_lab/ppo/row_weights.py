"""Weights of a minibatch's rows, where episodes of different lengths are padded with dead rows.

Shapes: L = lanes, T = steps of a sequence, R = rows per lane of a rollout, B = rows per lane in a
minibatch. Rows are sequence-major: row = sequence * T + t.
"""

from __future__ import annotations

from enum import Enum

from torch import Tensor

__all__ = ["Aggregation", "live_weights", "row_weights", "rows_mean", "scale_weights"]


class Aggregation(Enum):
    """How the losses of steps become the loss of a minibatch.

    token_mean: the mean over all live steps, so a long sequence counts more. DAPO
    (arXiv:2503.14476, eq. 8) and BNPO; verl's token-mean, TRL's loss_type=dapo over its whole
    batch and bnpo over a micro-batch. Ours is over a minibatch.

    sequence_mean: the mean over sequences of the mean over each one's live steps, so a step of a
    long sequence counts less. GRPO (arXiv:2402.03300, eq. 3) and GSPO; verl's
    seq-mean-token-mean, TRL's loss_type=grpo.

    sequence_sum: the sum over live steps, divided by the number of sequences times T, the most
    steps one can have: a step counts the same in every minibatch. Dr. GRPO (arXiv:2503.20783);
    verl's seq-mean-token-sum-norm, TRL's loss_type=dr_grpo. verl's seq-mean-token-sum is T times
    it.
    """

    token_mean = "token_mean"
    sequence_mean = "sequence_mean"
    sequence_sum = "sequence_sum"


def rows_mean(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over rows of ``x`` (…, B), each times its weight (…, B); None is 1.

    A row with the weight 0 may hold anything, also NaN.

    Example:
        >>> import torch
        >>> rows_mean(torch.tensor([2.0, 4.0, torch.nan]), torch.tensor([1.5, 1.5, 0.0])).item()
        3.0
    """
    if weights is None:
        return x.mean(-1)
    return (x.masked_fill(weights == 0.0, 0.0) * weights).mean(-1)


def row_weights(live: Tensor, num_steps: int, aggregation: Aggregation) -> Tensor:
    """Return the weights (L, R) of a rollout's rows relative to each other, 0 for dead rows.

    ``live`` is (L, R) bool, R a multiple of T = ``num_steps``. The rows of a minibatch, once
    chosen, are given to ``scale_weights``.
    """
    weights = live.float()
    if aggregation is not Aggregation.sequence_mean:
        return weights
    sequences = weights.unflatten(-1, (-1, num_steps))  # (L, R / T, T)
    shares = sequences / sequences.mean(-1, keepdim=True).clamp(min=1.0 / num_steps)
    return shares.flatten(-2)


def scale_weights(weights: Tensor, aggregation: Aggregation) -> Tensor:
    """Return ``weights`` (…, B) of a minibatch's rows for ``rows_mean``.

    Their mean becomes 1, but not with sequence_sum, which counts dead rows in the divisor. Without
    any live row they stay 0.

    They are scaled before a minibatch is split into micro-batches: then the mean of the equal
    parts' means is that of the minibatch, wherever its dead rows are.
    """
    if aggregation is Aggregation.sequence_sum:
        return weights
    mean = weights.mean(-1, keepdim=True)
    return weights / mean.masked_fill(mean == 0.0, 1.0)


def live_weights(live: Tensor) -> Tensor:
    """Return equal weights of mean 1 (…, B) for the rows that are ``live`` (…, B) bool."""
    return scale_weights(live.float(), Aggregation.token_mean)
