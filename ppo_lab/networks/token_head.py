"""Log-probabilities of tokens from features, without all logits in memory at once.

Shapes: L = lanes, R = rows per lane, F = features, V = tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ppo_lab.networks.distributions import Categorical
from ppo_lab.networks.layers import LaneLinear

__all__ = ["token_log_prob_and_entropy"]

# Logits at once: 64 MiB in float32, and 110 rows of a vocabulary of 152 000.
_MAX_LOGITS = 1 << 24


def token_log_prob_and_entropy(
    features: Tensor, head: LaneLinear, actions: Tensor, *, max_logits: int = _MAX_LOGITS
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each of ``actions`` and the policy's entropy, (L, R) each.

    They are those of a ``Categorical`` with the logits ``head(features)``, in float32 at least. If
    there are more than ``max_logits``, at most about as many exist at once: rows are split into
    chunks, whose logits the backward pass computes a second time.

    Args:
        features: (L, R, F), possibly in autocast's type.
        head: Maps F to V.
        actions: int64 (L, R).
        max_logits: L * rows * V of a chunk, unless one row has more.
    """
    num_lanes, num_rows, _ = features.shape
    num_rows_at_once = max(1, max_logits // (num_lanes * head.weight.shape[-1]))
    if num_rows <= num_rows_at_once:
        return _log_prob_and_entropy(features, head, actions)
    compute: Callable[..., tuple[Tensor, Tensor]] = _log_prob_and_entropy
    if torch.is_grad_enabled():
        compute = partial(checkpoint, compute, use_reentrant=False, preserve_rng_state=False)
    chunks = zip(features.split(num_rows_at_once, 1), actions.split(num_rows_at_once, 1))
    log_probs, entropies = zip(*(compute(rows, head, taken) for rows, taken in chunks))
    return torch.cat(log_probs, 1), torch.cat(entropies, 1)


def _log_prob_and_entropy(
    features: Tensor, head: LaneLinear, actions: Tensor
) -> tuple[Tensor, Tensor]:
    logits = head(features)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return Categorical(logits.shape[-1]).log_prob_and_entropy(logits, actions)
