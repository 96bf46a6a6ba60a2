"""Copies an iteration's results to the host: one record per lane, and each lane's history.

With everything on the device, recording is the only time an iteration waits for it.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, R = T * N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.envs.base import Env
from ppo_lab.ppo.after_update import RolloutDiagnostics
from ppo_lab.ppo.diagnostics import UpdateDiagnostics, ratio_edges
from ppo_lab.tracking import Histogram, Record
from ppo_lab.training.finite import FiniteCheck
from ppo_lab.training.lane_progress import LaneProgress
from ppo_lab.training.scores import History

__all__ = ["EpisodeMeter", "EpisodeTotals", "IterationTensors", "Recorder"]

# CleanRL's metric names where it has them, so that runs can be compared with its own. Names that
# are not listed are ``losses/`` and the field.
_UPDATE_NAMES = {
    "clip_frac": "losses/clipfrac",
    "clip_above_frac": "losses/clipfrac_above",
    "clip_below_frac": "losses/clipfrac_below",
    "cut_above_frac": "losses/cutfrac_above",
    "cut_below_frac": "losses/cutfrac_below",
    "pass_frac": "losses/passfrac",
    "gradient_steps": "ppo/gradient_steps",
    "epochs_done": "ppo/epochs_done",
}
_RATIO_EDGES = ratio_edges()
_NUM_SAMPLES = 8
_TEXT = "text/"
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
    check: FiniteCheck
    sums: Tensor  # (L, 4) of ``check``
    named: Mapping[str, Tensor]  # further metrics, (L,) each


class Recorder:
    """Builds the records and histories of a stack's lanes."""

    def __init__(
        self,
        env: Env,
        placement: Placement,
        max_entropy: float | None,
        *,
        samples_every: int = 0,
    ) -> None:
        """Record the lanes of ``env``, whose policies have at most ``max_entropy`` nats.

        Every ``samples_every`` iterations, and the first, a record has samples; 0: never.
        """
        self._env, self._samples_every = env, samples_every
        self._placement, self._max_entropy = placement, max_entropy
        self.histories = [History() for _ in range(env.num_lanes)]

    def records(
        self, tensors: IterationTensors, progress: LaneProgress, *, shared: dict[str, float]
    ) -> dict[int, Record]:
        """Return a record for each live lane, after ``progress`` has counted the iteration.

        ``shared`` holds the metrics of the stack as a whole.
        """
        names, (scalars, counts, *episodes) = self.fetch(tensors)
        all_scalars, all_counts = scalars.tolist(), counts.tolist()
        # numpy, whose small operations cost a tenth of torch's.
        ended, all_returns, all_lengths = (part.numpy() for part in episodes)
        texts = {name: values.tolist() for name, values in self._env.text_metrics().items()}
        records = {}
        for lane in progress.live_lanes:
            metrics, history = dict(zip(names, all_scalars[lane])), self.histories[lane]
            step, iteration = progress.num_steps[lane], progress.lane_iteration(lane)
            own = ended[:, lane]
            own_returns = all_returns[:, lane][own]
            returns = own_returns.tolist()
            metrics |= _episode_metrics(own_returns, all_lengths[:, lane][own])
            if self._max_entropy is not None:
                metrics["ppo/entropy_frac"] = metrics["ppo/entropy"] / self._max_entropy
            history.add(step, returns, metrics.get("ppo/entropy_frac"), metrics["ppo/kl_k3"])
            if history.final_return is not None:
                metrics["charts/episodic_return_last100"] = history.final_return
            if history.diverged is None:
                is_finite = all(map(math.isfinite, all_scalars[lane][len(names) :]))
                divergence = _divergence(metrics)
                if divergence is not None or not is_finite:
                    history.diverged = tensors.check.describe(lane) or divergence
            histograms = {"ppo/ratio": Histogram(all_counts[lane], _RATIO_EDGES)}
            metrics |= {f"{_TEXT}{name}": values[lane] for name, values in texts.items()}
            history.texts = {
                name.removeprefix(_TEXT): metrics[name]
                for name in metrics
                if name.startswith(_TEXT)
            }
            metrics |= shared
            samples: Sequence[tuple[str, float]] = ()
            if self._samples_every and (iteration == 1 or iteration % self._samples_every == 0):
                samples = self._samples(lane, all_returns[:, lane] * ended[:, lane])
            records[lane] = Record(step, iteration, metrics, histograms, samples)
        return records

    def _samples(self, lane: int, returns: NDArray[Any]) -> list[tuple[str, float]]:
        """Return texts of ``lane``; ``returns`` (T, N) are 0 where no episode ended."""
        return list(zip(self._env.samples(lane, _NUM_SAMPLES), returns.sum(0).tolist()))

    def fetch(self, tensors: IterationTensors) -> tuple[list[str], list[Tensor]]:
        """Copy to the host: names of scalars, all scalars (L, …), ratio counts, episodes.

        Behind the scalars that have names are the sums that must be finite.
        """
        update, after = tensors.update._asdict(), tensors.after
        del update["first_bad"]
        named = {_UPDATE_NAMES.get(key, f"losses/{key}"): value for key, value in update.items()}
        named |= {f"ppo/{key}": value for key, value in after.ratios._asdict().items()}
        named["ppo/entropy"] = after.entropy
        named["ppo/advantages_std"] = after.advantages_std
        named["losses/explained_variance"] = after.explained_variance
        named = {name: value for name, value in named.items() if value is not None}
        named.update(tensors.named)
        columns = [*named.values(), *tensors.sums.unbind(-1)]
        scalars = torch.stack([column.double() for column in columns], -1)  # in one copy
        moved = scalars, after.ratio_counts, *tensors.episodes
        return list(named), [self._placement.move(tensor, Place.host) for tensor in moved]


def _divergence(metrics: Mapping[str, float]) -> str | None:
    """Return the first of the decisive metrics that is not finite, with its value."""
    bad = (name for name in _MUST_BE_FINITE if not math.isfinite(metrics.get(name, 0.0)))
    return next((f"{name} is {metrics[name]}" for name in bad), None)


def _episode_metrics(returns: NDArray[Any], lengths: NDArray[Any]) -> dict[str, float]:
    """Return statistics of the episodes that ended in an iteration; only the count if none."""
    values = returns.tolist()
    if not values:
        return {"charts/episodes": 0.0}
    return {
        "charts/episodes": float(len(values)),
        "charts/episodic_return": float(returns.mean()),
        "charts/episodic_return_std": float(returns.std()),
        "charts/episodic_return_min": min(values),
        "charts/episodic_return_max": max(values),
        "charts/episodic_length": float(lengths.mean()),
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
        sums = torch.zeros(2, num_lanes, num_envs, dtype=torch.float64, device=device)
        self._return, self._length = sums.unbind(0)

    def reset_lanes(self, lanes: Tensor) -> None:
        """Set the running sums of ``lanes`` (int64) to 0."""
        for carried in (self._return, self._length):
            carried.index_fill_(0, lanes, 0.0)

    def lane_tensors(self, lane: int) -> dict[str, Tensor]:
        """Return views of the running sums of ``lane``, (N,)."""
        return {"return": self._return[lane], "length": self._length[lane]}

    def count(self, env_rewards: Tensor, ended: Tensor) -> EpisodeTotals:
        """Return the totals of the episodes that end in a rollout; arguments (T, L, N)."""
        returns, self._return = _since_last_end(env_rewards, ended, self._return)
        lengths, self._length = _since_last_end(torch.ones_like(env_rewards), ended, self._length)
        return EpisodeTotals(ended, returns, lengths)


def _since_last_end(amounts: Tensor, ended: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums of ``amounts`` (T, L, N) since each episode's start, and the sums to carry."""
    zeros = torch.zeros_like(carried).unsqueeze(0)
    # sums[t] is the sum before step t; the carried part belongs to the first episode only.
    sums = torch.cat((zeros, amounts.to(carried.dtype).cumsum(0)))  # (T + 1, L, N)
    steps = torch.arange(1, len(sums), device=amounts.device).view(-1, 1, 1)
    ends = (ended * steps).cummax(0).values  # (T, L, N) steps up to the last end
    starts = torch.cat((zeros.long(), ends))  # (T + 1, L, N) start of step t's episode
    since = sums[1:] - sums.gather(0, starts[:-1])
    since = torch.where(starts[:-1] == 0, since + carried, since)
    last = starts[-1:]
    carry = (sums[-1:] - sums.gather(0, last)).squeeze(0)
    return since, torch.where(last.squeeze(0) == 0, carry + carried, carry)
