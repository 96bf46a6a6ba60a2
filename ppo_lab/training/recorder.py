"""Copies an iteration's results to the host: one record per lane, and each lane's history.

This is the only place where an iteration synchronises with the host.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, R = T * N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.ppo.after_update import RolloutDiagnostics
from ppo_lab.ppo.diagnostics import UpdateDiagnostics, ratio_edges
from ppo_lab.tracking import Histogram, Record
from ppo_lab.training.scores import History

__all__ = ["EpisodeMeter", "EpisodeTotals", "IterationTensors", "Recorder"]

# CleanRL's metric names where it has them, so that runs can be compared with its own.
_UPDATE_NAMES = {
    "policy_loss": "losses/policy_loss",
    "value_loss": "losses/value_loss",
    "entropy": "losses/entropy",
    "grad_norm": "losses/grad_norm",
    "grad_norm_actor": "losses/grad_norm_actor",
    "grad_norm_critic": "losses/grad_norm_critic",
    "approx_kl": "losses/approx_kl",
    "old_approx_kl": "losses/old_approx_kl",
    "clip_frac": "losses/clipfrac",
    "clip_above_frac": "losses/clipfrac_above",
    "clip_below_frac": "losses/clipfrac_below",
    "cut_above_frac": "losses/cutfrac_above",
    "cut_below_frac": "losses/cutfrac_below",
    "pass_frac": "losses/passfrac",
    "ratio_min": "losses/ratio_min",
    "ratio_max": "losses/ratio_max",
    "gradient_steps": "ppo/gradient_steps",
    "epochs_done": "ppo/epochs_done",
}
_MUST_BE_FINITE = (
    "charts/episodic_return",  # absent if no episode ended
    "losses/policy_loss",
    "losses/value_loss",
    "losses/grad_norm",
    "ppo/kl_k3",
)


@dataclass(frozen=True)
class IterationTensors:
    """An iteration's results on the device."""

    update: UpdateDiagnostics
    after: RolloutDiagnostics
    episodes: EpisodeTotals


class HostTensors(NamedTuple):
    """An iteration's results on the host, as far as a record needs them."""

    names: tuple[str, ...]  # the columns of ``scalars``
    scalars: Tensor  # (L, names) float64
    ratio_counts: Tensor  # (L, 64)
    episodes: EpisodeTotals


class Recorder:
    """Builds the records and histories of a stack's lanes."""

    def __init__(
        self, num_lanes: int, num_rows: int, placement: Placement, max_entropy: float | None
    ) -> None:
        """Record ``num_lanes`` lanes with ``num_rows`` environment steps each per rollout."""
        self._num_rows, self._placement, self._max_entropy = num_rows, placement, max_entropy
        self.histories = [History() for _ in range(num_lanes)]

    def reset_lane(self, lane: int) -> None:
        """Start a new history for a lane."""
        self.histories[lane] = History()

    def records(
        self,
        tensors: IterationTensors,
        *,
        iterations: Mapping[int, int],
        shared: Mapping[str, float],
    ) -> dict[int, Record]:
        """Return a record for each lane in ``iterations``, which maps lanes to their iteration.

        Iterations count from 1; ``shared`` holds the metrics of the stack as a whole.
        """
        on_host = self.fetch(tensors)
        scalars, counts = on_host.scalars.tolist(), on_host.ratio_counts.tolist()
        # numpy, whose small operations cost a tenth of torch's.
        ended, all_returns, all_lengths = (part.numpy() for part in on_host.episodes)
        records = {}
        for lane, iteration in iterations.items():
            metrics, history = dict(zip(on_host.names, scalars[lane])), self.histories[lane]
            step = iteration * self._num_rows
            own = ended[:, lane]
            returns = all_returns[:, lane][own].tolist()
            metrics |= _episode_metrics(returns, all_lengths[:, lane][own].tolist())
            entropy_frac = None
            if self._max_entropy is not None:
                entropy_frac = metrics["ppo/entropy"] / self._max_entropy
                metrics["ppo/entropy_frac"] = entropy_frac
            history.add(step, returns, entropy_frac, metrics["ppo/kl_k3"])
            if history.final_return is not None:
                metrics["charts/episodic_return_last100"] = history.final_return
            history.diverged = history.diverged or _divergence(metrics)
            histograms = {"ppo/ratio": Histogram(counts[lane], ratio_edges())}
            records[lane] = Record(step, iteration, metrics | dict(shared), histograms)
        return records

    def fetch(self, tensors: IterationTensors) -> HostTensors:
        """Copy the results to the host; all scalars as one tensor, in one copy."""
        update = {name: getattr(tensors.update, key) for key, name in _UPDATE_NAMES.items()}
        named = {name: value for name, value in update.items() if value is not None}
        named |= {f"ppo/{key}": value for key, value in tensors.after.ratios._asdict().items()}
        named["ppo/entropy"] = tensors.after.entropy
        named["ppo/advantages_std"] = tensors.after.advantages_std
        named["losses/explained_variance"] = tensors.after.explained_variance
        table = torch.stack([value.double() for value in named.values()], -1)  # (L, names)
        return HostTensors(
            names=tuple(named),
            scalars=self._to_host(table),
            ratio_counts=self._to_host(tensors.after.ratio_counts),
            episodes=EpisodeTotals(*(self._to_host(t) for t in tensors.episodes)),
        )

    def _to_host(self, tensor: Tensor) -> Tensor:
        return self._placement.move(tensor, Place.host)


def _divergence(metrics: Mapping[str, float]) -> str | None:
    """Return the first of the decisive metrics that is not finite, with its value."""
    bad = (name for name in _MUST_BE_FINITE if not math.isfinite(metrics.get(name, 0.0)))
    return next((f"{name} is {metrics[name]}" for name in bad), None)


def _episode_metrics(returns: Sequence[float], lengths: Sequence[float]) -> dict[str, float]:
    """Return statistics of the episodes that ended in an iteration; only the count if none."""
    if not returns:
        return {"charts/episodes": 0.0}
    return {
        "charts/episodes": float(len(returns)),
        "charts/episodic_return": float(np.mean(returns)),
        "charts/episodic_return_std": float(np.std(returns)),
        "charts/episodic_return_min": min(returns),
        "charts/episodic_return_max": max(returns),
        "charts/episodic_length": float(np.mean(lengths)),
    }


class EpisodeTotals(NamedTuple):
    """Return and length of the episode that ended at each step; undefined where none did."""

    ended: Tensor  # (T, L, N) bool
    returns: Tensor  # (T, L, N) undiscounted sum of the environment's own rewards
    lengths: Tensor  # (T, L, N) steps


class EpisodeMeter:
    """Episode returns and lengths, with running sums of unfinished episodes between rollouts."""

    def __init__(self, num_lanes: int, num_envs: int, device: torch.device) -> None:
        """Start with all sums at 0."""
        self._return = torch.zeros(num_lanes, num_envs, dtype=torch.float64, device=device)
        self._length = torch.zeros(num_lanes, num_envs, dtype=torch.float64, device=device)

    def reset_lanes(self, lanes: Tensor) -> None:
        """Set the running sums of ``lanes`` (int64) to 0."""
        for carried in (self._return, self._length):
            carried.index_fill_(0, lanes, 0.0)

    def count(self, env_rewards: Tensor, ended: Tensor) -> EpisodeTotals:
        """Return the totals of the episodes that end in a rollout.

        Args:
            env_rewards: The environment's own rewards, (T, L, N).
            ended: Whether an episode ended at the step, bool (T, L, N).
        """
        returns, self._return = _since_last_end(env_rewards, ended, self._return)
        lengths, self._length = _since_last_end(torch.ones_like(env_rewards), ended, self._length)
        return EpisodeTotals(ended, returns, lengths)


def _since_last_end(amounts: Tensor, ended: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums of ``amounts`` (T, L, N) since each episode's start, and the sums to carry.

    Each is the running sum over the rollout minus its value at the start of the episode.
    """
    num_steps = len(amounts)
    zeros = torch.zeros_like(carried).unsqueeze(0)
    # sums[t] is the sum before step t; the carried part belongs to the first episode only.
    sums = torch.cat((zeros, amounts.to(carried.dtype).cumsum(0)))  # (T + 1, L, N)
    steps = torch.arange(1, num_steps + 1, device=amounts.device).view(-1, 1, 1)
    ends = (ended * steps).cummax(0).values  # (T, L, N) steps up to the last end
    starts = torch.cat((zeros.long(), ends))  # (T + 1, L, N) start of step t's episode
    since = sums[1:] - sums.gather(0, starts[:-1])
    since = torch.where(starts[:-1] == 0, since + carried, since)
    last = starts[-1:]
    carry = (sums[-1:] - sums.gather(0, last)).squeeze(0)
    return since, torch.where(last.squeeze(0) == 0, carry + carried, carry)
