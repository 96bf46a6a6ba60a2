"""Compose a command line into checked configs, before Hydra makes a folder or starts a job.

Hydra makes a job's folder before it calls the job. So all jobs of a command are composed and
checked here first, with Hydra's own loader.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from ppo_lab.config.run import Config, check_whole, nested_keys
from ppo_lab.config.study import CommandConfig, StudyConfig, renamed
from ppo_lab.memory import STRATEGIES, AutoMemory
from ppo_lab.networks import NETWORKS
from ppo_lab.utils.errors import ConfigError, closest_match
from ppo_lab.utils.paths import CONF_DIR, SWEEPS_DIR

__all__ = [
    "Composer", "GridLoader", "Job", "check_jobs", "known_keys", "load", "parse", "register",
]  # fmt: skip


class Job(NamedTuple):
    """One run of a command."""

    overrides: tuple[str, ...]
    config: Config
    is_multirun: bool  # whether the command is a grid: by -m, ``sweep=``, or a file's hydra.mode


@functools.cache
def _unused_dir(path: str) -> str:
    """Make and return the folder ``path``, or ``path-2``, ``path-3``, ... if it exists already.

    Made at once, so that two commands started in one second get different folders. Cached, because
    Hydra resolves it again for every job of a grid.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        candidate = path if number == 1 else f"{path}-{number}"
        with contextlib.suppress(FileExistsError):
            Path(candidate).mkdir()
            break
    return candidate


def register() -> None:
    """Register schemas, sweeps and the resolver ``unused_dir`` with Hydra."""
    # Hydra deep-copies the store for each composition, and for each group that --help lists: 2 s in
    # all. It only reads the store, and copies what it takes from it.
    ConfigStore.__deepcopy__ = _itself  # type: ignore[attr-defined]
    store = ConfigStore.instance()
    store.store(name="schema", node=CommandConfig)
    study: DictConfig = OmegaConf.structured(StudyConfig)
    for key in ("space", "conditions", "sampler", "pruner"):
        OmegaConf.set_struct(study[key], False)  # free dictionaries: new keys need no +
    store.store(group="study", name="schema", node=study)
    for name, network in NETWORKS.items():
        store.store(group="network/schema", name=name, node=network)
    for name, strategy in {AutoMemory.name: AutoMemory, **STRATEGIES}.items():
        store.store(group="memory/schema", name=name, node=strategy)
    _register_sweeps(SWEEPS_DIR)
    OmegaConf.register_new_resolver("unused_dir", _unused_dir, replace=True)


def _itself(store: ConfigStore, memo: dict[int, Any]) -> ConfigStore:  # noqa: ARG001
    return store


def _register_sweeps(folder: Path) -> None:
    """Register every YAML file of ``folder`` as an option of ``sweep=``, at the top level."""
    for path in sorted(folder.glob("*.yaml")):
        node = OmegaConf.load(path)
        ConfigStore.instance().store(group="sweep", name=path.stem, node=node, package="_global_")


def load(cfg: DictConfig) -> Config:
    """Return the ``Config`` of a composed run; raise ``ConfigError`` if it cannot be used."""
    _refuse_unknown_keys(cfg)
    fields = [field.name for field in dataclasses.fields(Config)]
    values: Any = OmegaConf.to_object(OmegaConf.masked_copy(cfg, fields))  # without the study
    config = Config(**values)
    config.check_env()
    return config


def check_jobs(
    overrides: Sequence[str],
    *,
    is_multirun: bool,
    config_dir: str | None,
    config_name: str | None,
    check_study: Callable[[DictConfig, ConfigLoader], None] | None = None,
) -> list[Job]:
    """Return every job of a command, composed and checked. Creates nothing.

    Args:
        overrides: As typed, such as ``epsilon=0.1``.
        is_multirun: Whether ``-m`` was given.
        config_dir: Folder with more configs, searched beside ``conf/``.
        config_name: Primary config, ``config`` by default.
        check_study: Called in place of composing jobs if the command is a study.

    Raises:
        ConfigError: a value cannot be used.
        HydraException, OmegaConfBaseException: Hydra could not compose.
    """
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if (remedy := renamed(key)) is not None:
            raise ConfigError(key, value, remedy)
    name, folders = config_name or "config", [CONF_DIR]
    if config_dir is not None:
        own = Path(config_dir).resolve()
        if not own.is_dir():
            raise ConfigError("--config-dir", config_dir, "there is no such folder")
        _register_sweeps(own / "sweeps")
        # Hydra looks for the primary config in the first folder only.
        folders = [own, CONF_DIR] if (own / f"{name}.yaml").is_file() else [CONF_DIR, own]
    search = [f"hydra.searchpath=[file://{folder}]" for folder in folders[1:]]
    if any(override.startswith("hydra.searchpath=") for override in overrides):
        search = []
    with initialize_config_dir(config_dir=str(folders[0]), version_base="1.3"):
        command = _compose_command(name, [*overrides, *search])
        loader = GlobalHydra.instance().config_loader()
        if command.study is not None and check_study is not None:
            check_study(command, loader)
            return []
        launcher = command.hydra.launcher
        if str(launcher.get("_target_")).startswith("hydra_plugins.ppo_lab_launcher."):
            for key in ("num_workers", "max_lanes"):
                check_whole(f"hydra.launcher.{key}", launcher[key], auto=True)
        is_grid = (
            is_multirun
            or command.hydra.mode is RunMode.MULTIRUN
            or command.hydra.runtime.choices.get("sweep") is not None
        )
        if not is_grid and not any(parse(override).is_sweep_override() for override in overrides):
            return [Job(tuple(overrides), load(_without_hydra(command)), is_grid)]
        batches = _expand(command, overrides) if is_grid else [tuple(overrides)]
        composer = Composer(loader, command)
        return [Job(batch, load(composer.run(batch)), is_grid) for batch in batches]


def _compose_command(name: str, overrides: list[str]) -> DictConfig:
    """Compose a command as Hydra does to find out whether it should sweep, and over what."""
    main: Any = GlobalHydra.instance().hydra
    cfg: DictConfig = main.compose_config(
        config_name=name,
        overrides=overrides,
        run_mode=RunMode.MULTIRUN,
        with_log_configuration=False,
        validate_sweep_overrides=False,
    )
    return cfg


def _without_hydra(composed: DictConfig) -> DictConfig:
    """Return a copy of the run's part of a composed config."""
    run = copy.deepcopy(composed)
    with open_dict(run):
        del run["hydra"]
    return run


def _expand(command: DictConfig, overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """Return each job's overrides, as Hydra's own sweeper expands them."""
    params = OmegaConf.select(command, "hydra.sweeper.params") or {}
    parsed = [parse(text) for text in [*(f"{k}={v}" for k, v in params.items()), *overrides]]
    # Hydra's own keys belong to the command, not to its jobs.
    of_jobs = [override for override in parsed if not override.is_hydra_override()]
    (batch,) = BasicSweeper.split_arguments(of_jobs, max_batch_size=None)
    return [tuple(job) for job in batch]


@functools.cache
def known_keys() -> frozenset[str]:
    """Return every key of the default config, dotted."""
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        values: Any = OmegaConf.to_container(compose("config"))
    return frozenset(nested_keys(values))


def _refuse_unknown_keys(node: DictConfig, prefix: str = "") -> None:
    """Raise ``ConfigError`` for keys added by ``+key=value``, which nothing reads."""
    kind: Any = OmegaConf.get_type(node)
    if not dataclasses.is_dataclass(kind):
        return  # a free dictionary, such as env.kwargs
    names = {field.name for field in dataclasses.fields(kind)}
    for key in map(str, node):
        if key not in names:
            close = closest_match(key, names)
            hint = f"; did you mean {prefix}{close}?" if close else ""
            raise ConfigError(f"{prefix}{key}", node[key], f"there is no such key{hint}")
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _refuse_unknown_keys(child, f"{prefix}{key}.")


class Composer:
    """Composes jobs of a command; each combination of config files is read once.

    Reading files takes Hydra 0.15 s or more; values are set on a copy, in some 5 ms.
    """

    def __init__(self, loader: ConfigLoader, command: DictConfig) -> None:
        """Compose jobs of the ``command`` with ``loader``; Hydra's own keys are the command's."""
        assert isinstance(loader, ConfigLoaderImpl)
        self._loader, self._command = loader, command
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._runs: dict[tuple[str, ...], DictConfig] = {}

    def job(self, overrides: Sequence[str]) -> DictConfig:
        """Return what Hydra itself would compose from ``overrides``, its own part included."""
        files, values = self._split(overrides)
        cfg = copy.deepcopy(self._read(files))
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        task = [parsed for parsed in map(parse, overrides) if not parsed.is_hydra_override()]
        cfg.hydra.overrides.task = [override.input_line for override in task]
        naming = cfg.hydra.job.config.override_dirname
        cfg.hydra.job.override_dirname = get_overrides_dirname(
            overrides=task,
            kv_sep=naming.kv_sep,
            item_sep=naming.item_sep,
            exclude_keys=naming.exclude_keys,
        )
        return cfg

    def run(self, overrides: Sequence[str] = ()) -> DictConfig:
        """Return the same without Hydra's own part, as ``load`` takes it."""
        files, values = self._split(overrides)
        if files not in self._runs:
            self._runs[files] = _without_hydra(self._read(files))
        cfg = copy.deepcopy(self._runs[files])
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        return cfg

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
            and not self._loader.repository.group_exists(override.key_or_group)
        )


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


@functools.lru_cache(maxsize=1024)  # 2 ms each, and the jobs of a grid or study repeat them
def parse(override: str) -> Override:
    """Return an override as Hydra reads it; cached, so it must not be changed.

    Raises:
        HydraException: it cannot be read.
    """
    (parsed,) = OverridesParser.create().parse_overrides(overrides=[override])
    return parsed
