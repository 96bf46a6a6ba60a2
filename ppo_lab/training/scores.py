"""What a finished run amounts to: its score, and whether it fell apart on the way.

All functions take plain sequences: one entry per iteration, oldest first.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["History", "area_under_curve", "has_collapsed", "is_dead"]

_SCORE_EPISODES = (
    100  # final_return is a mean of this many, as in the paper (arXiv:1707.06347, 6.1)
)
_COLLAPSE_GAIN = 0.2  # a run must first have gained this share of the task's range to lose it
_COLLAPSE_KEPT = 0.5  # and ends with less than this share of its gain
_WINDOW_SHARE = 0.1  # windows are this share of the run's iterations
_DEAD_UPDATES = 10
_DEAD_ENTROPY_FRAC = 0.01
_DEAD_KL = 1e-4


@dataclass
class History:
    """One lane's curve, and the window of episodes that scores it."""

    steps: list[int] = field(default_factory=list)
    """Environment steps at the end of each iteration in which a return was known."""
    returns: list[float] = field(default_factory=list)
    """Mean of the last 100 episodes (of all, if fewer) at those steps."""
    entropy_fracs: list[float] = field(default_factory=list)
    """Entropy as a share of its maximum, after each update; empty for continuous actions."""
    kls: list[float] = field(default_factory=list)
    """k3 KL over the rollout after each update."""
    num_episodes: int = 0
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=_SCORE_EPISODES))

    def add(
        self, step: int, episode_returns: Sequence[float], entropy_frac: float | None, kl: float
    ) -> None:
        """Append an iteration; ``episode_returns`` are of the episodes that ended in it."""
        self._last.extend(episode_returns)
        self.num_episodes += len(episode_returns)
        self.kls.append(kl)
        if entropy_frac is not None:
            self.entropy_fracs.append(entropy_frac)
        if self._last:
            self.steps.append(step)
            self.returns.append(sum(self._last) / len(self._last))

    @property
    def final_return(self) -> float | None:
        """Mean return of the last 100 finished episodes, of all if fewer; None if none ended."""
        return self.returns[-1] if self.returns else None

    @property
    def best_return(self) -> float | None:
        """The largest such mean at the end of any iteration."""
        return max(self.returns, default=None)


def area_under_curve(steps: Sequence[int], returns: Sequence[float]) -> float | None:
    """Return the mean of the curve over environment steps (trapezoids); None without a curve."""
    if not returns:
        return None
    if len(returns) == 1:
        return returns[0]
    area = sum(
        (steps[i] - steps[i - 1]) * (returns[i] + returns[i - 1]) / 2.0
        for i in range(1, len(returns))
    )
    return area / (steps[-1] - steps[0])


def has_collapsed(
    returns: Sequence[float], *, random_return: float, target_return: float
) -> bool | None:
    """Return whether a run rose and then lost most of what it had gained.

    The best window of a tenth of the run must have gained at least 20 % of the way from a random
    policy to the target, and the last window keep less than half of that gain. None for fewer than
    ten entries: a tenth of the run is then no window.
    """
    width = int(len(returns) * _WINDOW_SHARE)
    if width == 0:
        return None
    windows = [
        sum(returns[i : i + width]) / width - random_return for i in range(len(returns) - width + 1)
    ]
    sign = math.copysign(1.0, target_return - random_return)
    best, last = max(sign * gain for gain in windows), sign * windows[-1]
    has_risen = best >= _COLLAPSE_GAIN * abs(target_return - random_return)
    return has_risen and last < _COLLAPSE_KEPT * best


def is_dead(
    returns: Sequence[float],
    entropy_fracs: Sequence[float],
    kls: Sequence[float],
    *,
    random_return: float,
) -> bool | None:
    """Return whether the policy has stopped moving at or below random.

    In each of the last ten updates entropy below 1 % of its maximum and k3 KL below 1e-4, with a
    final return no better than random's. None where that cannot be told.
    """
    if not returns or len(entropy_fracs) < _DEAD_UPDATES:
        return None
    return (
        all(share < _DEAD_ENTROPY_FRAC for share in entropy_fracs[-_DEAD_UPDATES:])
        and all(kl < _DEAD_KL for kl in kls[-_DEAD_UPDATES:])
        and returns[-1] <= random_return
    )
