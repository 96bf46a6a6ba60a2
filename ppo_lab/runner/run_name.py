"""Names of a run and of its network, as trackers show them."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection, Sequence
from typing import Any

import yaml

from ppo_lab.config.run import Config
from ppo_lab.config.settings import ABOUT_A_RUN
from ppo_lab.networks import NETWORKS, NetworkConfig
from ppo_lab.utils.json_files import to_jsonable
from ppo_lab.utils.paths import CONF_DIR

__all__ = ["name_parts", "network_name", "run_name"]

_IN_PARTS = ("name", "env", "memory", "epsilon", "seed")
_UNNAMED = (*ABOUT_A_RUN, "compile", "checkpoint", "device", "hydra")
_SHORT = 8  # characters of a number that are shown as they are


def name_parts(config: Config) -> list[str]:
    """Return environment, memory strategy, epsilon and seed, in characters that ids may have."""
    env = re.sub(r"[^A-Za-z0-9._=-]", "-", config.env.id)[:24]
    return [env, config.memory.name, f"eps{config.epsilon_label}", f"s{config.seed}"]


def run_name(
    config: Config, overrides: Sequence[str], varying: Collection[str] | None = None
) -> str:
    """Return ``{name}__{env}__{memory}__eps{epsilon}__s{seed}`` and what else sets the run apart.

    That is each override of a ``varying`` key; if these are unknown (None), each that may change
    the result.
    """
    more = []
    for text in overrides:
        key, equals, value = text.lstrip("+~").partition("=")
        is_shown = key in varying if varying is not None else not _is_unnamed(key)
        if is_shown and key not in _IN_PARTS:
            more.append(f"{key}{equals}{_shortened(value)}")
    named = [config.name] if config.name != Config.name else []
    return "__".join([*named, config.env.id, *name_parts(config)[1:], *more])


def _is_unnamed(key: str) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in _UNNAMED)


def _shortened(value: str) -> str:
    """Return a long number with four significant digits, anything else as it is."""
    is_long = len(value) > _SHORT and re.fullmatch(r"-?[\d.]+(e-?\d+)?", value)
    return f"{float(value):.4g}" if is_long and value.count(".") == 1 else value


def network_name(network: NetworkConfig, overrides: Sequence[str]) -> str:
    """Return the option of ``network=`` that has these values; the kind of network if none has.

    Example:
        >>> from ppo_lab.networks import MlpConfig
        >>> network_name(MlpConfig(hidden=[64, 64]), []), network_name(MlpConfig(hidden=[9]), [])
        ('tiny', 'mlp')
    """
    kind = next(name for name, cls in NETWORKS.items() if type(network) is cls)
    values, defaults = (to_jsonable(dataclasses.asdict(it)) for it in (network, type(network)()))
    for name, option in _options(kind).items():
        if defaults | option == values:
            return name
    typed = [text.partition("=") for text in overrides if text.startswith("network")]
    is_own_file = len(typed) == 1 and typed[0][0] == "network"  # of --config-dir
    return typed[0][2] if is_own_file else kind


@functools.cache
def _options(kind: str) -> dict[str, dict[str, Any]]:
    """Return what each option of ``network=`` of one kind sets."""
    texts = {path.stem: path.read_text() for path in sorted(CONF_DIR.glob("network/*.yaml"))}
    own = {name: text for name, text in texts.items() if f"schema/{kind}@_here_" in text}
    options = {name: yaml.safe_load(text) for name, text in own.items()}
    return {
        name: {key: value for key, value in option.items() if key != "defaults"}
        for name, option in options.items()
    }
