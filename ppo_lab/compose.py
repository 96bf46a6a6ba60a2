"""From a command line to checked configs, before Hydra makes a folder or starts a job.

Hydra creates a job's folder first and calls us afterwards. So every job of a command is composed
and checked here beforehand, through Hydra's own compose API.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from ppo_lab.config import Config
from ppo_lab.errors import ConfigError, nearest
from ppo_lab.memory import STRATEGIES
from ppo_lab.networks import NETWORKS
from ppo_lab.paths import CONF_DIR

__all__ = ["Job", "check_jobs", "known_keys", "load", "register"]


@dataclass(frozen=True)
class Job:
    """One run of a command."""

    overrides: tuple[str, ...]
    config: Config


@functools.cache
def _unused_dir(path: str) -> str:
    """Make and return ``path``, or ``path-2``, ``path-3``, … where it exists already.

    Making it claims it: of two starts in one second each gets a folder of its own. Cached, because
    Hydra asks anew for every job of a grid.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    candidate, number = path, 1
    while True:
        try:
            Path(candidate).mkdir()
        except FileExistsError:
            number += 1
            candidate = f"{path}-{number}"
        else:
            return candidate


def register() -> None:
    """Tell Hydra the schema of every group and our resolver."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for name, network in NETWORKS.items():
        store.store(group="network/schema", name=name, node=network)
    for name, strategy in STRATEGIES.items():
        store.store(group="memory/schema", name=name, node=strategy)
    OmegaConf.register_new_resolver("unused_dir", _unused_dir, replace=True)


def load(cfg: DictConfig) -> Config:
    """Return the checked ``Config`` of a composed one.

    Raises:
        ConfigError: a key is unknown or a value cannot be used.
    """
    _refuse_unknown_keys(cfg)
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    config.check_env()
    return config


def check_jobs(
    overrides: Sequence[str], *, is_multirun: bool, config_dir: str | None, config_name: str | None
) -> list[Job]:
    """Return every job of a command, composed and checked; nothing is created.

    Raises:
        ConfigError: a value cannot be used.
        HydraException, OmegaConfBaseException: Hydra could not compose; see ``refusals.explain``.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError("--config-dir", config_dir, "there is no such folder")
    folders = [CONF_DIR] if config_dir is None else [CONF_DIR, Path(config_dir).resolve()]
    name = config_name or "config"
    # The first folder is where Hydra looks for the primary config itself.
    if config_dir is not None and (folders[1] / name).with_suffix(".yaml").is_file():
        folders.reverse()
    search = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders[1:])}]"]
    if any(override.startswith("hydra.searchpath=") for override in overrides) or not folders[1:]:
        search = []
    batches = _expand(overrides) if is_multirun else [tuple(overrides)]
    with initialize_config_dir(config_dir=str(folders[0]), version_base="1.3"):
        return [Job(batch, load(compose(name, overrides=[*batch, *search]))) for batch in batches]


def _expand(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """Return each job's overrides, as Hydra's own sweeper will run them."""
    parsed = OverridesParser.create().parse_overrides(overrides=list(overrides))
    # Hydra's own keys belong to the command, not to its jobs; but for where YAML is looked for.
    of_jobs = [
        override
        for override in parsed
        if not (key := override.key_or_group or "").startswith("hydra") or key == "hydra.searchpath"
    ]
    (batch,) = BasicSweeper.split_arguments(of_jobs, max_batch_size=None)
    return [tuple(job) for job in batch]


@functools.cache
def known_keys() -> frozenset[str]:
    """Return every key that a run's default config has, dotted."""
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        cfg = compose("config")
    return frozenset(_dotted(cfg, ""))


def _dotted(node: DictConfig, prefix: str) -> Iterator[str]:
    for key in map(str, node):
        yield f"{prefix}{key}"
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_missing() and not child._is_none():
            yield from _dotted(child, f"{prefix}{key}.")


def _refuse_unknown_keys(node: DictConfig, prefix: str = "") -> None:
    """Raise for keys that ``+key=value`` added: nothing would ever read them."""
    kind: Any = OmegaConf.get_type(node)
    if not dataclasses.is_dataclass(kind):
        return  # a free dictionary, such as env.kwargs
    names = {field.name for field in dataclasses.fields(kind)}
    for key in map(str, node):
        if key not in names:
            close = nearest(key, names)
            hint = f"; did you mean {prefix}{close}?" if close else ""
            raise ConfigError(f"{prefix}{key}", node[key], f"there is no such key{hint}")
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _refuse_unknown_keys(child, f"{prefix}{key}.")
