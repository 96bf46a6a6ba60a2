"""Which keys may differ between the lanes of a stack, and which must be equal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from ppo_lab.config.run import Config
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.json_files import to_jsonable

__all__ = ["LANE_KEYS", "check_lane", "check_stack", "stack_key", "stack_values"]

LANE_KEYS = frozenset({
    "name", "seed", "epsilon", "epsilon_high", "epsilon_schedule", "dual_clip", "value_epsilon",
    "target_kl", "lr", "lr_schedule", "max_grad_norm", "gamma", "gae_lambda", "entropy_coef",
    "value_coef", "total_steps", "tracking", "gae_lambda_policy", "gae_lambda_value",
    "policy_start_iteration",
})  # fmt: skip
"""Keys that may differ between the lanes of a stack; all others must be equal."""


def check_stack(configs: Sequence[Config]) -> None:
    """Raise ``ConfigError`` unless ``configs`` can train as one stack."""
    first = configs[0]
    for config in configs[1:]:
        check_lane(config, first)
    if (limit := first.lane_limit) is not None and len(configs) > limit[2]:
        allowed = f"trains at most {limit[2]} lane, not {len(configs)}"
        raise ConfigError(limit[0], limit[1], allowed)


def check_lane(config: Config, other: Config) -> None:
    """Raise ``ConfigError`` unless ``config`` can be a lane beside ``other``."""
    for field in dataclasses.fields(Config):
        mine, its = getattr(config, field.name), getattr(other, field.name)
        if field.name not in LANE_KEYS and mine != its:
            raise ConfigError(field.name, mine, f"must equal {its} in every lane of a stack")
    limits = config.max_grad_norm, other.max_grad_norm
    if config.memory.optimizer_in_backward and limits.count(None) == 1:
        allowed = "must be none in every lane or in none with memory.optimizer_in_backward"
        raise ConfigError("max_grad_norm", limits[0], allowed)


def stack_values(config: Config) -> dict[str, Any]:
    """Return the values of all keys that must be equal in every lane, as JSON holds them."""
    values = dataclasses.asdict(config)
    kinds = [type(part).__qualname__ for part in (config.env, config.network, config.memory)]
    shared = {key: value for key, value in values.items() if key not in LANE_KEYS}
    if config.memory.optimizer_in_backward:  # in one backward pass or in two
        shared["clips"] = config.max_grad_norm is not None
    return {"kinds": kinds, **to_jsonable(shared)}


def stack_key(config: Config) -> str:
    """Return a key that is equal for configs that can be lanes of one stack, and only for those."""
    return json.dumps(stack_values(config), sort_keys=True)
