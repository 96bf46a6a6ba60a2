"""Which episodes ended in a rollout, and what they returned.

Shapes: T = steps per rollout, L = lanes, N = environments per lane.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["EpisodeMeter", "EpisodeTotals"]


class EpisodeTotals(NamedTuple):
    """Return and length of the episode that ended at each step; meaningless where none did."""

    ended: Tensor  # (T, L, N) bool
    returns: Tensor  # (T, L, N) undiscounted sum of the environment's own rewards
    lengths: Tensor  # (T, L, N) steps


class EpisodeMeter:
    """Carries the unfinished episodes' sums from one rollout to the next."""

    def __init__(self, num_lanes: int, num_envs: int, device: torch.device) -> None:
        """Start with every episode at its first step."""
        self._return = torch.zeros(num_lanes, num_envs, dtype=torch.float64, device=device)
        self._length = torch.zeros(num_lanes, num_envs, dtype=torch.float64, device=device)

    def restart_lanes(self, lanes: Tensor) -> None:
        """Start the episodes of ``lanes`` (int64) anew."""
        for carried in (self._return, self._length):
            carried.index_fill_(0, lanes, 0.0)

    def count(self, env_rewards: Tensor, ended: Tensor) -> EpisodeTotals:
        """Add a rollout: ``env_rewards`` and ``ended``, both (T, L, N).

        A running sum over the rollout, less what the sum was when the episode began.
        """
        returns, self._return = _since_last_end(env_rewards, ended, self._return)
        lengths, self._length = _since_last_end(torch.ones_like(env_rewards), ended, self._length)
        return EpisodeTotals(ended, returns, lengths)


def _since_last_end(amounts: Tensor, ended: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums of ``amounts`` (T, L, N) since each episode's start, and what to carry on."""
    num_steps = len(amounts)
    zeros = torch.zeros_like(carried).unsqueeze(0)
    # sums[t] is what came before step t; the carried part belongs to the first episode alone.
    sums = torch.cat((zeros, amounts.to(carried.dtype).cumsum(0)))  # (T + 1, L, N)
    steps = torch.arange(1, num_steps + 1, device=amounts.device).view(-1, 1, 1)
    ends = (ended * steps).cummax(0).values  # (T, L, N) steps up to the last end
    starts = torch.cat((zeros.long(), ends))  # (T + 1, L, N) where step t's episode began
    since = sums[1:] - sums.gather(0, starts[:-1])
    since = torch.where(starts[:-1] == 0, since + carried, since)
    last = starts[-1:]
    carry = (sums[-1:] - sums.gather(0, last)).squeeze(0)
    return since, torch.where(last.squeeze(0) == 0, carry + carried, carry)
