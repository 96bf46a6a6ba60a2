"""Values that may differ between the lanes of a stack, as tensors over lanes.

Shapes: L = lanes, E = epochs, R = rows per lane of a rollout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ppo_lab.config.run import Config, Schedule
from ppo_lab.ppo.losses import ClipRange
from ppo_lab.ppo.update import LaneHyperparameters
from ppo_lab.utils.rng import Stream, fold_in, lane_keys, permutation

__all__ = ["LaneValues", "schedule_metrics"]


_REQUIRED = ("gamma", "lr", "entropy_coef", "value_coef", "max_grad_norm")
_STREAMS = Stream.ACTION, Stream.SHUFFLE, Stream.RESTART, Stream.EVAL
_LAMBDAS = "gae_lambda_policy", "gae_lambda_value"
_OPTIONAL = ("value_epsilon", "dual_clip", "target_kl")
"""Left out of the program where no lane uses them."""


class LaneValues:
    """Hyperparameters and random keys of every lane as (L,) tensors, with their schedules.

    Tensors are changed in place when a lane is replaced, so references to them stay valid.
    """

    def __init__(self, configs: Sequence[Config], device: torch.device, dtype: torch.dtype) -> None:
        """Put the lane keys of ``configs`` on ``device``; ``none`` becomes infinity."""
        self._device, self._dtype = device, dtype
        self._columns, self._keys = self._columns_of(configs), self._keys_of(configs)
        self._begins = torch.zeros(len(configs), dtype=torch.int64, device=device)  # (L,)
        self._options = {key for config in configs for key in _options_of(config)}
        self.gamma = self._columns["gamma"]  # (L,)
        self.lambda_policy, self.lambda_value = (self._columns[key] for key in _LAMBDAS)  # (L,)
        self.num_live = torch.zeros(len(configs), dtype=torch.float64, device=device)
        """(L,) steps of whole episodes so far, which schedules then follow."""
        self.has_two_lambdas = any(map(_has_two_lambdas, configs))
        """Whether a lane's GAE has one lambda for the policy and another for the critic."""
        self._counts_live = configs[0].whole_episodes
        self._has_warm_up = any(config.policy_start_iteration for config in configs)

    def _columns_of(self, configs: Sequence[Config]) -> dict[str, Tensor]:
        rows = [_numbers(config) for config in configs]
        return {
            key: torch.tensor([row[key] for row in rows], dtype=self._dtype, device=self._device)
            for key in rows[0]
        }

    def _keys_of(self, configs: Sequence[Config]) -> dict[Stream, Tensor]:
        seeds = torch.tensor([c.seed for c in configs], dtype=torch.int64, device=self._device)
        return {stream: lane_keys(seeds, stream) for stream in _STREAMS}

    def replace(self, lanes: Tensor, configs: Sequence[Config], iteration: int) -> None:
        """Set ``lanes`` (int64, on the device) to ``configs``, which start at ``iteration``."""
        for key, column in self._columns_of(configs).items():
            self._columns[key].index_copy_(0, lanes, column)
        for stream, keys in self._keys_of(configs).items():
            self._keys[stream].index_copy_(0, lanes, keys)
        self._begins.index_fill_(0, lanes, iteration)
        self.num_live.index_fill_(0, lanes, 0.0)
        self._options |= {key for config in configs for key in _options_of(config)}
        self.has_two_lambdas |= any(map(_has_two_lambdas, configs))
        self._has_warm_up |= any(config.policy_start_iteration for config in configs)

    def begin_lane(self, lane: int, iteration: int, *, num_live: int) -> None:
        """Have ``lane`` begin at the stack's ``iteration``, which is negative for older runs.

        ``num_live`` are its steps so far, which count where episodes are whole.
        """
        self._begins[lane] = iteration
        self.num_live[lane] = num_live

    def freeze_lane(self, lane: int) -> None:
        """Freeze the parameters of ``lane`` by a learning rate of 0."""
        self._columns["lr"][lane] = 0.0

    def keys(self, stream: Stream, iteration: int) -> Tensor:
        """Return the random keys (L,) of the stack's ``iteration``, counted from 0."""
        return fold_in(self._keys[stream], iteration - self._begins)

    def permutations(
        self, iteration: int, num_epochs: int, num_rows: int, num_together: int = 1
    ) -> Tensor:
        """Return the order of the rows in each epoch of the stack's ``iteration``, (E, L, R).

        Each ``num_together`` consecutive rows, those of a sequence, stay together and in order.
        """
        keys = self.keys(Stream.SHUFFLE, iteration)
        every = torch.stack([fold_in(keys, epoch) for epoch in range(num_epochs)])
        order = permutation(every.flatten(), num_rows // num_together).unflatten(0, every.shape)
        if num_together == 1:
            return order
        within = torch.arange(num_together, device=order.device)
        return (order.unsqueeze(-1) * num_together + within).flatten(-2)

    def hyperparameters(self, iteration: int) -> LaneHyperparameters:
        """Return the scheduled values in the stack's ``iteration``, counted from 0.

        An infinite epsilon stays infinite; after its last iteration a lane keeps the last values.
        """
        numbers = self._columns
        last = numbers["num_iterations"] - 1.0
        spent = last.minimum(iteration - self._begins) / numbers["num_iterations"]
        if self._counts_live:
            spent = (self.num_live / numbers["total_steps"]).clamp(max=1.0).to(self._dtype)
        kept = 1.0 - numbers["anneals_epsilon"] * spent
        fixed = {key: numbers[key] for key in ("entropy_coef", "value_coef", "max_grad_norm")}
        options = {key: numbers[key] if key in self._options else None for key in _OPTIONAL}
        return LaneHyperparameters(
            lr=numbers["lr"] * (1.0 - numbers["anneals_lr"] * spent),
            clip=ClipRange(numbers["epsilon"] * kept, numbers["epsilon_high"] * kept),
            policy_weight=self._policy_weight(iteration),
            **fixed,
            **options,  # type: ignore[arg-type]  # of these alone any may be absent
        )

    def _policy_weight(self, iteration: int) -> Tensor | None:
        """Return where the policy trains in the stack's ``iteration``, see the hyperparameter."""
        if not self._has_warm_up:
            return None
        is_due = iteration - self._begins >= self._columns["policy_start_iteration"]
        return is_due.to(self._dtype)


def schedule_metrics(config: Config, spent: float) -> dict[str, float]:
    """Return a lane's scheduled values as metrics; no ``ppo/epsilon`` without a clip.

    ``spent`` is the share of the run before the iteration.
    """
    metrics = {"charts/learning_rate": config.lr}
    if config.lr_schedule is Schedule.linear:
        metrics["charts/learning_rate"] *= 1.0 - spent
    if config.epsilon is not None:
        kept = 1.0 - spent if config.epsilon_schedule is Schedule.linear else 1.0
        metrics["ppo/epsilon"] = config.epsilon * kept
    return metrics


def _numbers(config: Config) -> dict[str, float]:
    """Return a config's lane values; ``none`` is infinity."""
    keys = (*_REQUIRED, *_OPTIONAL, "epsilon", "epsilon_high")
    values = {key: getattr(config, key) for key in keys}
    if config.epsilon_high is None:
        values["epsilon_high"] = config.epsilon
    lambdas = {
        key: config.gae_lambda if (value := getattr(config, key)) is None else value
        for key in _LAMBDAS
    }
    return {key: math.inf if value is None else value for key, value in values.items()} | {
        **lambdas,
        "total_steps": config.total_steps,
        "policy_start_iteration": config.policy_start_iteration,
        "num_iterations": config.num_iterations,
        "anneals_lr": config.lr_schedule is Schedule.linear,
        "anneals_epsilon": config.epsilon_schedule is Schedule.linear,
    }


def _has_two_lambdas(config: Config) -> bool:
    return any(getattr(config, key) is not None for key in _LAMBDAS)


def _options_of(config: Config) -> set[str]:
    return {key for key in _OPTIONAL if getattr(config, key) is not None}
