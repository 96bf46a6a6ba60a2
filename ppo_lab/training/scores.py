"""Scores of a run: final return, area under the curve, collapse and dead policies.

All functions take plain sequences with one entry per iteration, oldest first.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["History", "area_under_curve", "has_collapsed", "is_dead", "policy_state"]

_SCORE_EPISODES = 100  # averaged in final_return, as in the paper (arXiv:1707.06347, 6.1)
_COLLAPSE_GAIN = 0.2  # share of the task's range that must have been gained before a collapse
_COLLAPSE_KEPT = 0.5  # share of the gain below which a run has collapsed
_WINDOW_SHARE = 0.1  # length of a window, as a share of the run's iterations
_DEAD_UPDATES = 10
_DEAD_ENTROPY_FRAC = 0.01
_DEAD_KL = 1e-4
_CURVES = ("returns", "entropy_fracs", "kls")


@dataclass
class History:
    """Learning curve of one lane."""

    steps: list[int] = field(default_factory=list)
    """Environment steps at the end of each iteration, from the first finished episode on."""
    returns: list[float] = field(default_factory=list)
    """Mean of the last 100 episodes (of all, if fewer) at those steps."""
    entropy_fracs: list[float] = field(default_factory=list)
    """Entropy as a share of its maximum, after each update; empty for continuous actions."""
    kls: list[float] = field(default_factory=list)
    """k3 KL over the rollout after each update."""
    num_episodes: int = 0
    diverged: str | None = None
    """The first metric that was not finite, with its value; None while all are finite."""
    texts: dict[str, float] = field(default_factory=dict)
    """Metrics of the texts of the latest iteration; empty without texts."""
    eval_steps: list[int] = field(default_factory=list)
    """Environment steps at the evaluations of the deterministic policy, if there are any."""
    eval_returns: list[float] = field(default_factory=list)
    """Mean return of each evaluation."""
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=_SCORE_EPISODES))

    def add(
        self, step: int, episode_returns: Sequence[float], entropy_frac: float | None, kl: float
    ) -> None:
        """Append an iteration; ``episode_returns`` are those of the episodes that ended in it."""
        self._last.extend(episode_returns)
        self.num_episodes += len(episode_returns)
        self.kls.append(kl)
        if entropy_frac is not None:
            self.entropy_fracs.append(entropy_frac)
        if self._last:
            self.steps.append(step)
            self.returns.append(sum(self._last) / len(self._last))

    def add_eval(self, step: int, mean_return: float) -> bool:
        """Append an evaluation; return whether its policy is the best so far."""
        best = self.eval_scores().get("best_eval_return")
        self.eval_steps.append(step)
        self.eval_returns.append(mean_return)
        return math.isfinite(mean_return) and (best is None or mean_return > best)

    def eval_scores(self) -> dict[str, float | None]:
        """Return the mean returns of the last and of the best evaluation; empty without any."""
        if not self.eval_returns:
            return {}
        best = max(filter(math.isfinite, self.eval_returns), default=None)
        return {"final_eval_return": self.eval_returns[-1], "best_eval_return": best}

    def columns(self) -> dict[str, list[float]]:
        """Return all sequences, for ``from_columns``."""
        steps, last = list(map(float, self.steps)), list(self._last)
        columns = {"steps": steps, "last": last} | {name: getattr(self, name) for name in _CURVES}
        if self.eval_steps:
            columns["eval_steps"] = list(map(float, self.eval_steps))
            columns["eval_returns"] = self.eval_returns
        return columns

    @classmethod
    def from_columns(cls, columns: Mapping[str, Sequence[float]], num_episodes: int) -> History:
        """Return the history of a run that has not diverged."""
        steps, curves = list(map(int, columns["steps"])), (list(columns[name]) for name in _CURVES)
        returns, entropy_fracs, kls = curves
        history = cls(steps, returns, entropy_fracs, kls, num_episodes)
        history._last.extend(columns["last"])
        history.eval_steps = list(map(int, columns.get("eval_steps", ())))
        history.eval_returns = list(columns.get("eval_returns", ()))
        return history

    @property
    def final_return(self) -> float | None:
        """Mean return of the last 100 finished episodes, of all if fewer; None if none ended."""
        return self.returns[-1] if self.returns else None

    @property
    def best_return(self) -> float | None:
        """Largest such mean at the end of any iteration."""
        return max(self.returns, default=None)


def area_under_curve(steps: Sequence[int], returns: Sequence[float]) -> float | None:
    """Return the mean of a curve over environment steps (ascending), by the trapezoidal rule.

    None for an empty curve.

    >>> area_under_curve([0, 10, 30], [0.0, 100.0, 100.0])
    83.33333333333333
    """
    if not returns:
        return None
    if len(returns) == 1:
        return returns[0]
    ends = range(1, len(returns))
    area = sum((steps[i] - steps[i - 1]) * (returns[i] + returns[i - 1]) / 2.0 for i in ends)
    return area / (steps[-1] - steps[0])


def has_collapsed(
    returns: Sequence[float], *, random_return: float, target_return: float
) -> bool | None:
    """Return whether a run improved and then lost most of its gain.

    Windows are a tenth of the run. The best one must have gained at least 20 % of the way from a
    random policy to the return at which the task is solved, and the last one less than half of that
    gain. None for fewer than ten returns.

    >>> has_collapsed([0.0] * 5 + [90.0] * 10 + [20.0] * 5, random_return=0, target_return=100)
    True
    """
    width = int(len(returns) * _WINDOW_SHARE)
    if width == 0:
        return None
    sign = math.copysign(1.0, target_return - random_return)

    def gain_to(end: int) -> float:
        return sign * (sum(returns[end - width : end]) / width - random_return)

    # Differences of running sums find the best window in linear time; its own sum is exact.
    sums = [0.0, *itertools.accumulate(returns)]
    best_end = max(range(width, len(sums)), key=lambda end: sign * (sums[end] - sums[end - width]))
    best, last = gain_to(best_end), gain_to(len(returns))
    has_risen = best >= _COLLAPSE_GAIN * abs(target_return - random_return)
    return has_risen and last < _COLLAPSE_KEPT * best


def is_dead(
    returns: Sequence[float],
    entropy_fracs: Sequence[float],
    kls: Sequence[float],
    *,
    random_return: float,
) -> bool | None:
    """Return whether the policy has become deterministic and is no better than a random one.

    That is: in each of the last ten updates entropy is below 1 % of its maximum and k3 KL below
    1e-4, and the last return is at most ``random_return``. None without returns or with fewer than
    ten entropies.
    """
    if not returns or len(entropy_fracs) < _DEAD_UPDATES:
        return None
    return (
        all(share < _DEAD_ENTROPY_FRAC for share in entropy_fracs[-_DEAD_UPDATES:])
        and all(kl < _DEAD_KL for kl in kls[-_DEAD_UPDATES:])
        and returns[-1] <= random_return
    )


def policy_state(history: History, score_range: tuple[float, float] | None) -> str:
    """Return ``dead`` or ``collapsed`` while that holds for a run so far, else an empty text.

    ``score_range`` is the return of a random and of a good policy; without it neither is known.
    """
    if score_range is None or not history.returns:
        return ""
    low, high = score_range
    if is_dead(history.returns, history.entropy_fracs, history.kls, random_return=low):
        return "dead"
    # The search for the best window is needed only once the return is well below its maximum.
    best = max(history.returns) if high > low else min(history.returns)
    width = max(int(len(history.returns) * _WINDOW_SHARE), 1)
    last = sum(history.returns[-width:]) / width
    may_have = (last - low) / (high - low) < _COLLAPSE_KEPT * (best - low) / (high - low)
    if may_have and has_collapsed(history.returns, random_return=low, target_return=high):
        return "collapsed"
    return ""
