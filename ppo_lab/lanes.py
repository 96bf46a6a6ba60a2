"""What may differ between the lanes of a stack, as tensors.

Shapes: L = lanes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ppo_lab.config import LANE_KEYS, Config, Schedule
from ppo_lab.errors import ConfigError
from ppo_lab.ppo import ClipRange
from ppo_lab.update import Coefficients

__all__ = ["LaneTensors", "check_stack"]


def check_stack(configs: Sequence[Config]) -> None:
    """Raise ``ConfigError`` unless ``configs`` can train as one stack."""
    first = configs[0]
    for config in configs[1:]:
        for field in dataclasses.fields(Config):
            mine, other = getattr(config, field.name), getattr(first, field.name)
            if field.name not in LANE_KEYS and mine != other:
                raise ConfigError(field.name, mine, f"must equal {other} in every lane of a stack")
    limit = first.memory.max_lanes
    if limit is not None and len(configs) > limit:
        raise ConfigError(
            "memory", first.memory.name, f"trains at most {limit} lane, not {len(configs)}"
        )


class LaneTensors:
    """The lanes' own numbers as (L,) tensors, and their schedules."""

    def __init__(self, configs: Sequence[Config], device: torch.device, dtype: torch.dtype) -> None:
        """Put the lane keys of ``configs`` on ``device``; ``none`` becomes infinity."""

        def tensor(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        def column(key: str) -> Tensor:
            values = [getattr(c, key) for c in configs]
            return tensor([math.inf if value is None else value for value in values])

        def optional(key: str) -> Tensor | None:
            return None if all(getattr(c, key) is None for c in configs) else column(key)

        self.gamma, self.gae_lambda = column("gamma"), column("gae_lambda")
        self._lr = column("lr")
        self._epsilon = column("epsilon")
        self._epsilon_high = tensor([_epsilon_high(c) for c in configs])
        self._anneals_lr = tensor([c.lr_schedule is Schedule.linear for c in configs])
        self._anneals_epsilon = tensor([c.epsilon_schedule is Schedule.linear for c in configs])
        self._num_iterations = configs[0].num_iterations
        self._fixed = {
            "value_epsilon": optional("value_epsilon"),
            "dual_clip": optional("dual_clip"),
            "target_kl": optional("target_kl"),
            "entropy_coef": column("entropy_coef"),
            "value_coef": column("value_coef"),
            "max_grad_norm": column("max_grad_norm"),
        }

    def _spent(self, iteration: int) -> float:
        """Return the share of the run that lies behind ``iteration``, counted from 0."""
        return iteration / self._num_iterations

    def coefficients(self, iteration: int) -> Coefficients:
        """Return this iteration's values; an infinite epsilon stays infinite."""
        spent = self._spent(iteration)
        kept = 1.0 - self._anneals_epsilon * spent
        return Coefficients(
            lr=self._lr * (1.0 - self._anneals_lr * spent),
            clip=ClipRange(self._epsilon * kept, self._epsilon_high * kept),
            **self._fixed,  # type: ignore[arg-type]  # the required ones come from column()
        )

    def scheduled(self, config: Config, iteration: int) -> dict[str, float]:
        """Return one lane's scheduled numbers as metrics; no ``ppo/epsilon`` without a clip."""
        spent = self._spent(iteration)
        metrics = {"charts/learning_rate": config.lr}
        if config.lr_schedule is Schedule.linear:
            metrics["charts/learning_rate"] *= 1.0 - spent
        if config.epsilon is not None:
            kept = 1.0 - spent if config.epsilon_schedule is Schedule.linear else 1.0
            metrics["ppo/epsilon"] = config.epsilon * kept
        return metrics


def _epsilon_high(config: Config) -> float:
    if config.epsilon is None:
        return math.inf
    return float(config.epsilon if config.epsilon_high is None else config.epsilon_high)
