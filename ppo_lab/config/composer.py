"""Compose jobs of a command as Hydra does, reading each combination of config files once."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from ppo_lab.utils.paths import CONF_DIR

__all__ = ["Composer", "GridLoader", "open_hydra", "parse", "without_hydra"]

_WHOLE = re.compile(r"([a-z_]+)=(0|[1-9]\d*)")


@contextmanager
def open_hydra(config_dir: Path | None = None) -> Iterator[Hydra]:
    """Yield Hydra with the search path of ``hydra.main``: ours, then ``config_dir``."""
    version.setbase("1.3")
    search_path = create_config_search_path(str(CONF_DIR))
    if config_dir is not None:
        query = SearchPathQuery(provider="schema")
        search_path.prepend("command-line", f"file://{config_dir.resolve()}", query)
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield Hydra.create_main_hydra2("ppo_lab", search_path)
    finally:
        GlobalHydra.instance().hydra = outer


def without_hydra(composed: DictConfig) -> DictConfig:
    """Return a copy of the run's part of a composed config."""
    run = copy.deepcopy(composed)
    with open_dict(run):
        del run["hydra"]
    return run


class Composer:
    """Composes jobs of a command; each combination of config files is read once.

    Reading files takes Hydra 0.15 s or more; values are set on what was read, in some milliseconds.
    """

    def __init__(self, loader: ConfigLoader, command: DictConfig) -> None:
        """Compose jobs of the ``command`` with ``loader``; Hydra's own keys are the command's."""
        assert isinstance(loader, ConfigLoaderImpl)
        self._loader, self._command = loader, command
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._is_plain: dict[tuple[str, ...], bool] = {}
        self._groups: dict[str, bool] = {}

    @contextmanager
    def composed(self, overrides: Sequence[str], number: int | None = None) -> Iterator[DictConfig]:
        """Yield what Hydra itself would compose for the job ``number``, its own part included.

        It is valid inside the ``with`` only: the next job is composed in its place.
        """
        with self.values(overrides) as cfg:
            outer = HydraConfig.instance().cfg
            self._name_job(cfg, overrides, number)
            try:
                yield cfg
            finally:
                HydraConfig.instance().cfg = outer

    @contextmanager
    def values(self, overrides: Sequence[str]) -> Iterator[DictConfig]:
        """Yield the same, except that Hydra's own part is about no job or another one."""
        files, values = self._split(overrides)
        cfg = self._read(files)
        content = cfg.__dict__["_content"]
        before = {key: copy.deepcopy(content[key]) for key in _touched(values) if key in content}
        try:
            ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
            yield cfg
        finally:
            content.update(before)

    def _name_job(self, cfg: DictConfig, overrides: Sequence[str], number: int | None) -> None:
        """Set what Hydra's own part says about the job, and make it what ``${hydra:...}`` reads."""
        task = [parsed for parsed in map(parse, overrides) if not parsed.is_hydra_override()]
        naming = cfg.hydra.job.config.override_dirname
        cfg.hydra.job.id = cfg.hydra.job.num = MISSING if number is None else number
        cfg.hydra.overrides.task = [override.input_line for override in task]
        cfg.hydra.job.override_dirname = get_overrides_dirname(
            overrides=task,
            kv_sep=naming.kv_sep,
            item_sep=naming.item_sep,
            exclude_keys=naming.exclude_keys,
        )
        HydraConfig.instance().cfg = cfg  # type: ignore[assignment]

    def plain_keys(self, overrides: Sequence[str]) -> tuple[tuple[str, ...], frozenset[str]] | None:
        """Return the files of a job and the keys that its overrides set.

        None if a value follows from another one: by an interpolation, in a file or an override.
        """
        files, values = self._split(overrides)
        if files not in self._is_plain:
            raw: Any = OmegaConf.to_container(self._read(files), resolve=False)
            is_numbered = raw.pop("hydra")["sweep"]["subdir"] == "${hydra.job.num}"
            self._is_plain[files] = is_numbered and "${" not in str(raw)
        if not self._is_plain[files] or any("$" in override for override in overrides):
            return None
        return files, _touched(values)

    def job(self, overrides: Sequence[str]) -> DictConfig:
        """Return what Hydra itself would compose from ``overrides``, its own part included."""
        with self.composed(overrides) as cfg:
            return copy.deepcopy(cfg)

    def run(self, overrides: Sequence[str] = ()) -> DictConfig:
        """Return the same without Hydra's own part, as ``load`` takes it."""
        with self.composed(overrides) as cfg:
            return without_hydra(cfg)

    def choices(self, overrides: Sequence[str] = ()) -> dict[str, str]:
        """Return the option of each config group."""
        chosen = self._read(self._split(overrides)[0]).hydra.runtime.choices
        return {str(group): str(option) for group, option in chosen.items()}

    def _read(self, files: tuple[str, ...]) -> DictConfig:
        if files not in self._composed:
            self._composed[files] = self._loader.load_sweep_config(self._command, [*files])
        return self._composed[files]

    def _split(self, overrides: Sequence[str]) -> tuple[tuple[str, ...], list[Override]]:
        """Return the overrides that choose files or add keys, and those that set a value."""
        values, files = [], []
        for override in map(parse, overrides):
            if self._is_value(override):
                values.append(override)
            elif not override.is_hydra_override():
                files.append(str(override.input_line))
        return tuple(files), values

    def _is_value(self, override: Override) -> bool:
        return (
            override.type is OverrideType.CHANGE
            and not override.is_hydra_override()
            and override.package is None
            and not override.is_sweep_override()
            and not self._is_group(override.key_or_group)
        )

    def _is_group(self, key: str) -> bool:
        if key not in self._groups:
            self._groups[key] = self._loader.repository.group_exists(key)
        return self._groups[key]


class GridLoader(ConfigLoaderImpl):
    """Hydra's loader, except that the jobs of a grid are composed by one ``Composer``."""

    def __init__(self, loader: ConfigLoader, command: DictConfig) -> None:
        """Compose jobs of ``command`` from what ``loader`` reads."""
        super().__init__(loader.get_search_path())
        self._composer = Composer(loader, command)

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """Return a job of the command; called by launchers just before it runs."""
        if any(parse(override).is_hydra_override() for override in sweep_overrides):
            return super().load_sweep_config(master_config, sweep_overrides)
        return self._composer.job(sweep_overrides)


def _touched(values: Sequence[Override]) -> frozenset[str]:
    return frozenset(value.key_or_group.partition(".")[0] for value in values)


@functools.lru_cache(maxsize=4096)  # 2 ms each, and the jobs of a grid or study repeat them
def parse(override: str) -> Override:
    """Return an override as Hydra reads it; cached, so it must not be changed.

    Raises:
        HydraException: it cannot be read.
    """
    if (simple := _WHOLE.fullmatch(override)) is not None:  # such as the seeds of a large grid
        return Override(
            type=OverrideType.CHANGE,
            key_or_group=simple[1],
            value_type=ValueType.ELEMENT,
            _value=int(simple[2]),
            input_line=override,
        )
    (parsed,) = OverridesParser.create().parse_overrides(overrides=[override])
    return parsed
