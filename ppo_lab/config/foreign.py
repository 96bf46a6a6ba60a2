"""YAML files that are not the project's own: they may set values, and nothing else.

A folder given with ``--config-dir`` or a study's ``best.yaml`` may come from anywhere. Hydra would
let it name functions to call, set environment variables and choose folders, so its files are
checked before Hydra reads them, and what they made of Hydra's own part afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    if _root(path) is None:
        return {}
    try:
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # a tag that makes objects, a date without a day
        raise ConfigError("config file", path, f"cannot be read: {_one_line(error)}") from None
    return values


def check_file(path: Path) -> None:
    """Raise ``ConfigError`` if a YAML file that is not ours holds more than values."""
    real = path.resolve()
    if real.is_relative_to(CONF_DIR) or real.is_relative_to(SWEEPS_DIR):
        return
    if (root := _root(path)) is None:
        return
    _check_renamed(path, root)
    for node in _nodes(root, set()):
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                _check_key(path, str(key.value), value)
        elif isinstance(node, yaml.ScalarNode):
            _check_interpolations(path, node.value)


def _root(path: Path) -> yaml.MappingNode | None:
    """Return the root of a YAML file whose size is bounded; None for an empty one."""
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        allowed = f"must be a file of at most {_MOST_BYTES // 1024} kB"
        raise ConfigError("config file", path, allowed)
    try:
        root = _parse(path, path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("config file", path, f"cannot be read: {_one_line(error)}") from None
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ConfigError("config file", path, "must hold keys and values")
    if root is not None and _expanded_size(root, {}) > _MOST_NODES:
        raise ConfigError("config file", path, f"must hold at most {_MOST_NODES:,} values")
    return root


def _parse(path: Path, text: str) -> yaml.Node | None:
    """Return the root of the document, once it is known not to nest too deep to be composed."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MOST_DEPTH:
            raise ConfigError("config file", path, f"must nest at most {_MOST_DEPTH} deep")
    root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    return root


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _expanded_size(node: yaml.Node, seen: dict[int, int]) -> int:
    """Return the number of nodes with every alias replaced by what it names."""
    if seen.get(id(node)) == 0:  # within itself
        return _MOST_NODES + 1
    if id(node) not in seen:
        seen[id(node)] = 0
        seen[id(node)] = 1 + sum(_expanded_size(child, seen) for child in _children(node))
    return seen[id(node)]


def _nodes(node: yaml.Node, seen: set[int]) -> Iterator[yaml.Node]:
    if id(node) not in seen:
        seen.add(id(node))
        yield node
        for child in _children(node):
            yield from _nodes(child, seen)


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


def _check_renamed(path: Path, root: yaml.MappingNode) -> None:
    for key, value in root.value:
        if key.value == "study" and isinstance(value, yaml.MappingNode):
            keys = {f"study.{below.value}": "..." for below, _ in value.value}
            refuse_renamed(keys, f"{path}: ")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
