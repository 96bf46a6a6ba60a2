"""Check Hydra's own part of a composed command: what ``hydra.*`` may be, and who may set it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ppo_lab.config.composer import open_hydra, parse
from ppo_lab.config.grid import check_inside
from ppo_lab.utils.errors import REDACTED, ConfigError
from ppo_lab.utils.json_files import flat
from ppo_lab.utils.paths import CONF_DIR

__all__ = ["check_hydra_part", "is_of_file"]

_SWEEPERS = (
    "hydra_plugins.ppo_lab_launcher.GridSweeper",
    "hydra_plugins.ppo_lab_sweeper.StudySweeper",
)
_SECRET = re.compile(r"(?i)KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE|STORAGE|DSN|NETRC")
_FOLDERS = ("run.dir", "sweep.dir")
# What a file may set, the options of a launcher included: sizes and names, nothing that runs.
_FROM_FILE = re.compile(
    r"sweeper\.(params(\..*)?|max_batch_size)|mode|verbose|run\.dir|sweep\.(dir|subdir)"
    r"|output_subdir|job\.config\.override_dirname\..*"
    r"|launcher\.(num_workers|max_lanes|n_jobs|timeout_min|nodes|name|partition|qos|account"
    r"|constraint|exclude|mem_gb|mem_per_cpu|mem_per_gpu|cpus_per_task|cpus_per_gpu|gpus_per_node"
    r"|gpus_per_task|gres|tasks_per_node|array_parallelism|max_num_timeout|signal_delay_s)"
    r"|runtime\..*|overrides\..*|job\.(override_dirname|config_name)|searchpath"
)


def check_hydra_part(command: DictConfig, overrides: Sequence[str]) -> None:
    """Raise ``ConfigError`` if ``command.hydra`` holds what cannot work here, or is not safe."""
    hydra = command.hydra
    if hydra.job.chdir:
        allowed = "a run stays in the folder where it was started; must be false"
        raise ConfigError("hydra.job.chdir", "true", allowed)
    for name in hydra.job.env_set:  # what env_copy names included
        if _sounds_secret(str(name)):
            allowed = "sounds secret, and configs are saved; set it before the command"
            raise ConfigError(f"hydra.job.env_set.{name}", REDACTED, allowed)
    if hydra.output_subdir is not None:
        check_inside("hydra.output_subdir", str(hydra.output_subdir))
    if hydra.sweeper.get("_target_") not in _SWEEPERS:
        allowed = "must be basic, for a grid; for a study use study=default"
        raise ConfigError("hydra/sweeper", hydra.runtime.choices["hydra/sweeper"], allowed)
    if any(_is_foreign(source) for source in hydra.runtime.config_sources):
        _check_origins(command, [parse(text) for text in overrides])


def _sounds_secret(name: str) -> bool:
    """Return whether an environment variable's name says that its value is secret."""
    return _SECRET.search(name) is not None


def is_of_file(key: str) -> bool:
    """Return whether a file may set ``hydra.KEY``."""
    return _FROM_FILE.fullmatch(key) is not None


def _is_foreign(source: Any) -> bool:  # noqa: ANN401 - Hydra's ConfigSourceInfo
    return source.provider not in ("hydra", "schema") and source.path != str(CONF_DIR)


def _check_origins(command: DictConfig, overrides: Sequence[Override]) -> None:
    """Raise ``ConfigError`` for what Hydra's own part would not hold without the user's files."""
    typed = [o for o in overrides if o.is_hydra_override() and "/" not in o.key_or_group]
    typed = [o for o in typed if o.key_or_group != "hydra.searchpath"]
    of_launcher = {o.key_or_group for o in typed if o.key_or_group.startswith("hydra.launcher")}
    with open_hydra() as ours:
        chosen = _known_choices(ours.config_loader, command.hydra.runtime.choices)
        texts = [str(o.input_line) for o in typed if o.key_or_group not in of_launcher]
        reference = ours.compose_config(
            config_name="config",
            overrides=[*chosen, *texts],
            run_mode=RunMode.MULTIRUN,
            validate_sweep_overrides=False,
        )
    expected = _leaves(reference.hydra) | _launcher(command.hydra.launcher)
    for key, value in _leaves(command.hydra).items():
        if f"hydra.{key}" in of_launcher or (key in expected and expected[key] == value):
            continue
        if not is_of_file(key):
            allowed = "is allowed on the command line only, not in a file"
            raise ConfigError(f"hydra.{key}", value, allowed)
        if key in _FOLDERS:
            check_inside(f"hydra.{key}", str(OmegaConf.select(command.hydra, key)))


def _known_choices(loader: ConfigLoader, choices: Mapping[str, Any]) -> list[str]:
    """Return Hydra's own options that the command chose, by overrides; not those of its files."""
    return [
        f"{group}={option}"
        for group, option in choices.items()
        if str(group).startswith("hydra/")
        and option in loader.get_group_options(str(group), ObjectType.CONFIG)
    ]


def _launcher(launcher: DictConfig) -> dict[str, Any]:
    """Return the options of the installed launcher that ``launcher`` is, by dotted key."""
    groups: Any = ConfigStore.instance().repo["hydra"]
    for stored in groups["launcher"].values():
        node = OmegaConf.create(stored.node)
        if isinstance(node, DictConfig) and node.get("_target_") == launcher.get("_target_"):
            return _leaves(node, "launcher.")
    return {}


def _leaves(node: DictConfig, prefix: str = "") -> dict[str, Any]:
    values: Any = OmegaConf.to_container(node, resolve=False)
    return dict(flat(values, prefix))
