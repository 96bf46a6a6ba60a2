"""YAML files that are not the project's own: they may set values, and nothing else.

A folder given with ``--config-dir`` or a study's ``best.yaml`` may come from anywhere. Hydra would
let it name functions to call, set environment variables and choose folders, so its files are
checked before Hydra reads them, and what they made of Hydra's own part afterwards.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.plugins.config_source import ConfigResult

from ppo_lab.config.study import refuse_renamed
from ppo_lab.utils.errors import REDACTED, ConfigError
from ppo_lab.utils.paths import CONF_DIR, SWEEPS_DIR

__all__ = ["CheckedFileSource", "check_file", "read_plain"]

_MOST_BYTES, _MOST_DEPTH, _MOST_NODES = 128 * 1024, 32, 20_000
_TARGETS = ("optuna.samplers.", "optuna.pruners.")  # checked again where they are built
_RESOLVERS = frozenset({"now", "hydra", "oc.env", "oc.select", "oc.dict.keys", "oc.dict.values"})
_VARIABLES = re.compile(r"HOME|USER|LOGNAME|HOSTNAME|TMPDIR|CUDA_VISIBLE_DEVICES|SLURM_[A-Z_]+")
_INTERPOLATION = re.compile(r"\$\{(?=([^:}$]*)(.?)([^,}]*))", re.DOTALL)
_OF_COMMAND_LINE = {
    "searchpath": "hydra.searchpath", "env_set": "hydra.job.env_set",
    "env_copy": "hydra.job.env_copy",
}  # fmt: skip
"""Keys that Hydra acts on while it composes, wherever they stand in a file."""
_COMMAND_LINE = "is allowed on the command line only, not in a file"


class CheckedFileSource(FileConfigSource):
    """Hydra's source of YAML files, which checks those outside the project's own folders."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a config as Hydra reads it.

        Raises:
            ConfigError: the file holds more than values.
        """
        path = Path(self.path) / self._normalize_file_name(config_path)
        if path.exists():
            check_file(path)
        return super().load_config(config_path)


# Hydra registers its own again where a pickled job begins, and compares the names.
CheckedFileSource.__name__ = FileConfigSource.__name__


def read_plain(path: Path) -> dict[str, Any]:
    """Return the values of a YAML file as they stand there, interpolations included.

    Raises:
        ConfigError: it cannot be read, or is too large.
    """
    nodes = _read_nodes(path)
    try:
        build = yaml.constructor.SafeConstructor().construct_document
        values: Any = build(nodes[0]) if nodes else {}
    except (yaml.YAMLError, ValueError) as error:  # a tag that makes objects, a date without a day
        told = " ".join(str(error).split())
        raise ConfigError("config file", path, f"cannot be read: {told}") from None
    return dict(values)


def check_file(path: Path) -> None:
    """Raise ``ConfigError`` if a YAML file that is not ours holds more than values."""
    real = path.resolve()
    if real.is_relative_to(CONF_DIR) or real.is_relative_to(SWEEPS_DIR):
        return
    nodes = _read_nodes(path)
    _check_renamed(path, nodes)
    for node in nodes:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                _check_key(path, str(key.value), value)
        elif isinstance(node, yaml.ScalarNode):
            _check_interpolations(path, node.value)


def _read_nodes(path: Path) -> list[yaml.Node]:
    """Return the nodes of a YAML file from the root down, each alias replaced by what it names.

    Raises:
        ConfigError: it cannot be read, or is larger or deeper than a config needs to be.
    """
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        allowed = f"must be a file of at most {_MOST_BYTES // 1024} kB"
        raise ConfigError("config file", path, allowed)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        nodes = list(itertools.islice(_below(root), _MOST_NODES + 1)) if root else []
    except RecursionError:
        raise ConfigError("config file", path, f"must nest at most {_MOST_DEPTH} deep") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        told = " ".join(str(error).split())
        raise ConfigError("config file", path, f"cannot be read: {told}") from None
    if nodes and not isinstance(root, yaml.MappingNode):
        raise ConfigError("config file", path, "must hold keys and values")
    if len(nodes) > _MOST_NODES:
        raise ConfigError("config file", path, f"must hold at most {_MOST_NODES:,} values")
    return nodes


def _below(node: yaml.Node, depth: int = 0) -> Iterator[yaml.Node]:
    """Yield a node and all below; raise ``RecursionError``, as PyYAML does, if they nest deep."""
    yield node
    children = node.value if isinstance(node, yaml.CollectionNode) else []
    if children and depth == _MOST_DEPTH:
        raise RecursionError
    for child in itertools.chain(*children) if isinstance(node, yaml.MappingNode) else children:
        yield from _below(child, depth + 1)


def _check_key(path: Path, key: str, value: yaml.Node) -> None:
    if key in _OF_COMMAND_LINE:
        raise ConfigError(f"{path}: {_OF_COMMAND_LINE[key]}", REDACTED, _COMMAND_LINE)
    if key == "_target_" and not str(value.value).startswith(_TARGETS):
        allowed = "a file may choose samplers and pruners of Optuna, nothing else that runs code"
        raise ConfigError(f"{path}: _target_", value.value, allowed)


def _check_interpolations(path: Path, text: str) -> None:
    """Raise ``ConfigError`` for resolvers that read or make anything outside the config."""
    for match in _INTERPOLATION.finditer(text):
        name, end, argument = (part.strip() for part in match.groups())
        if end == "$":
            raise ConfigError(
                f"{path}: value", text, "must not hold an interpolation within another one"
            )
        if end != ":":
            continue
        if name not in _RESOLVERS:
            allowed = f"resolvers of a file are {', '.join(sorted(_RESOLVERS))}"
            raise ConfigError(f"{path}: {name}", text, allowed)
        if name == "oc.env" and not _VARIABLES.fullmatch(argument):
            allowed = f"{_COMMAND_LINE}; a file may read HOME, USER, TMPDIR, SLURM_* and the like"
            raise ConfigError(f"{path}: environment variable", argument, allowed)


def _check_renamed(path: Path, nodes: Sequence[yaml.Node]) -> None:
    for key, value in nodes[0].value if nodes else ():
        if key.value == "study" and isinstance(value, yaml.MappingNode):
            keys = {f"study.{below.value}": "..." for below, _ in value.value}
            refuse_renamed(keys, f"{path}: ")
