"""The settings of a run by which a stored run or study is recognised as the same."""

from __future__ import annotations

from typing import Any

from ppo_lab.config.run import Config
from ppo_lab.ppo.baselines import Gae

__all__ = ["ABOUT_A_RUN", "settings_of"]

ABOUT_A_RUN = (
    *("name", "tracking", "num_threads", "profile", "forecast", "forecast_format"),
    *("fit", "fit_over", "vram_budget_gib", "vram_limit_gib"),
)
"""Keys that say how a run is carried out and shown, not what is computed."""

_LATER = (
    *("policy_loss", "aggregation", "policy_start_iteration"),
    *("gae_lambda_policy", "gae_lambda_value", "eval_every", "eval_episodes", "fit", "fit_over"),
)
"""Keys that were added to runs and studies which exist; a new key belongs here."""
_LATER_OF_MEMORY = (
    *("reference_place", "offload_fraction", "optimizer_in_backward", "offload_activations"),
)
"""The same of ``memory.*``."""


def settings_of(config: Config) -> dict[str, Any]:
    """Return the config as nested JSON values, without later keys at their defaults.

    So what was begun before there were such keys can go on.
    """
    values = config.as_dict()
    if values["baseline"] == {"name": Gae.name}:
        del values["baseline"]
    for key in _LATER:
        if getattr(config, key) == getattr(Config, key):
            del values[key]
    for key in _LATER_OF_MEMORY:
        if getattr(config.memory, key) == getattr(type(config.memory), key):
            del values["memory"][key]
    return values
