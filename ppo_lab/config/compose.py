"""From a command line to checked configs, before Hydra makes a folder or starts a job.

Hydra creates a job's folder first and calls us afterwards. So every job of a command is composed
and checked here beforehand, through Hydra's own compose API.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from ppo_lab.config.run import Config
from ppo_lab.config.study import CommandConfig, StudyConfig, renamed
from ppo_lab.memory import STRATEGIES, AutoMemory
from ppo_lab.networks import NETWORKS
from ppo_lab.utils.errors import ConfigError, closest_match
from ppo_lab.utils.paths import CONF_DIR, SWEEPS_DIR

__all__ = ["Composer", "Job", "check_jobs", "known_keys", "load", "parse", "register"]


@dataclass(frozen=True)
class Job:
    """One run of a command."""

    overrides: tuple[str, ...]
    config: Config
    is_multirun: bool
    """Several jobs were asked for: by -m, by ``sweep=``, or by ``hydra.mode`` in a file."""


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
    """Tell Hydra the schema of every group, the sweeps and our resolver."""
    # ``check_jobs`` has composed every job; Hydra's sweepers would do so again, 0.3 s each.
    Sweeper.validate_batch_is_legal = _accept  # type: ignore[assignment]
    # Hydra copies the store, which it only reads, for every composition, and for --help for every
    # group that it lists: 2 s in all. What it reads from the store it copies anyway.
    ConfigStore.__deepcopy__ = _itself  # type: ignore[attr-defined]
    store = ConfigStore.instance()
    store.store(name="schema", node=CommandConfig)
    store.store(group="study", name="schema", node=_study_schema())
    for name, network in NETWORKS.items():
        store.store(group="network/schema", name=name, node=network)
    for name, strategy in {AutoMemory.name: AutoMemory, **STRATEGIES}.items():
        store.store(group="memory/schema", name=name, node=strategy)
    _register_sweeps(SWEEPS_DIR)
    OmegaConf.register_new_resolver("unused_dir", _unused_dir, replace=True)


def _itself(store: ConfigStore, memo: dict[int, Any]) -> ConfigStore:  # noqa: ARG001
    return store


def _accept(sweeper: Sweeper, batch: Sequence[Sequence[str]]) -> None:
    """Accept the jobs of ``batch`` as they are."""


def _study_schema() -> DictConfig:
    """Return the schema of ``study``, open where a person names keys: without a +."""
    schema: DictConfig = OmegaConf.structured(StudyConfig)
    for key in ("space", "conditions", "sampler", "pruner"):
        OmegaConf.set_struct(schema[key], False)
    return schema


def _register_sweeps(folder: Path) -> None:
    """Make every YAML of ``folder`` an option of ``sweep=``; its keys are the run's own."""
    for path in sorted(folder.glob("*.yaml")):
        node = OmegaConf.load(path)
        ConfigStore.instance().store(group="sweep", name=path.stem, node=node, package="_global_")


def load(cfg: DictConfig) -> Config:
    """Return the checked ``Config`` of a composed one.

    Raises:
        ConfigError: a key is unknown or a value cannot be used.
    """
    _refuse_unknown_keys(cfg)
    fields = [field.name for field in dataclasses.fields(Config)]
    values = OmegaConf.to_object(OmegaConf.masked_copy(cfg, fields))  # a study is not of the run
    assert isinstance(values, dict)
    config = Config(**{str(name): value for name, value in values.items()})
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
    """Return every job of a command, composed and checked; nothing is created.

    A study has no jobs yet, it samples them: ``check_study`` is given the composed command.

    Raises:
        ConfigError: a value cannot be used.
        HydraException, OmegaConfBaseException: Hydra could not compose; see ``refusals.explain``.
    """
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if (remedy := renamed(key)) is not None:
            raise ConfigError(key, value, remedy)
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError("--config-dir", config_dir, "there is no such folder")
    if config_dir is not None:
        _register_sweeps(Path(config_dir) / "sweeps")
    folders = [CONF_DIR] if config_dir is None else [CONF_DIR, Path(config_dir).resolve()]
    name = config_name or "config"
    # The first folder is where Hydra looks for the primary config itself.
    if config_dir is not None and (folders[1] / name).with_suffix(".yaml").is_file():
        folders.reverse()
    search = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders[1:])}]"]
    if any(override.startswith("hydra.searchpath=") for override in overrides) or not folders[1:]:
        search = []
    with initialize_config_dir(config_dir=str(folders[0]), version_base="1.3"):
        command = _compose_command(name, [*overrides, *search])
        loader = GlobalHydra.instance().config_loader()
        if command.cfg.study is not None and check_study is not None:
            check_study(command.cfg, loader)
            return []
        _check_launcher(command.cfg.hydra.launcher)
        is_grid = is_multirun or command.mode is RunMode.MULTIRUN or command.sweep is not None
        batches = _expand([*command.params, *overrides]) if is_grid else [tuple(overrides)]
        composer = Composer(loader, command.cfg)
        configs = (load(composer.run(batch)) for batch in batches)
        return [Job(batch, config, is_grid) for batch, config in zip(batches, configs)]


def _check_launcher(options: DictConfig) -> None:
    """Raise ``ConfigError`` for an option that ``hydra/launcher=stacked`` cannot use."""
    if not str(options.get("_target_")).startswith("hydra_plugins.ppo_lab_launcher."):
        return
    for key in ("num_workers", "max_lanes"):
        value = options[key]
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if value != "auto" and not (is_whole and value >= 1):
            allowed = "must be auto or a whole number >= 1"
            raise ConfigError(f"hydra.launcher.{key}", value, allowed)


class _Command(NamedTuple):
    """What Hydra's own part of a composed command says about its jobs."""

    cfg: DictConfig
    mode: RunMode | None
    sweep: str | None
    """The chosen file of ``sweeps/``."""
    params: list[str]
    """Overrides of the sweep's own, ``key=values`` each."""


def _compose_command(name: str, overrides: list[str]) -> _Command:
    """Compose as Hydra does to find out whether, and over what, it should sweep."""
    main: Any = GlobalHydra.instance().hydra
    cfg = main.compose_config(
        config_name=name,
        overrides=overrides,
        run_mode=RunMode.MULTIRUN,
        with_log_configuration=False,
        validate_sweep_overrides=False,
    )
    params = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
    return _Command(
        cfg=cfg,
        mode=cfg.hydra.mode,
        sweep=OmegaConf.select(cfg, "hydra.runtime.choices.sweep"),
        params=[f"{key}={value}" for key, value in params.items()],
    )


def _expand(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """Return each job's overrides, as Hydra's own sweeper will run them."""
    parsed = [parse(override) for override in overrides]
    # Hydra's own keys belong to the command, not to its jobs.
    of_jobs = [override for override in parsed if not override.is_hydra_override()]
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

    def __init__(
        self, loader: ConfigLoader, command: DictConfig, fixed: Sequence[str] = ()
    ) -> None:
        """Compose with ``loader`` from what it made of the ``command``.

        ``fixed`` overrides hold for every job; those of ``hydra`` are the command's own.
        """
        assert isinstance(loader, ConfigLoaderImpl)
        self._loader, self._command, self._fixed = loader, command, list(fixed)
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._runs: dict[tuple[str, ...], DictConfig] = {}

    def job(self, overrides: Sequence[str]) -> DictConfig:
        """Return what Hydra itself would compose from ``overrides``, its own part included."""
        files, values = self._split(overrides)
        cfg = copy.deepcopy(self._read(files))
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        _note_overrides(cfg, [parse(text) for text in [*self._fixed, *overrides]])
        return cfg

    def run(self, overrides: Sequence[str] = ()) -> DictConfig:
        """Return the same without Hydra's own part, as ``load`` takes it."""
        files, values = self._split(overrides)
        if files not in self._runs:
            self._runs[files] = copy.deepcopy(self._read(files))
            with open_dict(self._runs[files]):
                del self._runs[files]["hydra"]
        cfg = copy.deepcopy(self._runs[files])
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        return cfg

    def choices(self, overrides: Sequence[str] = ()) -> dict[str, str]:
        """Return the option of each config group."""
        chosen = self._read(self._split(overrides)[0]).hydra.runtime.choices
        return {str(group): str(option) for group, option in chosen.items()}

    def _read(self, files: tuple[str, ...]) -> DictConfig:
        if files not in self._composed:
            self._composed[files] = self._loader.load_sweep_config(
                self._command, [*self._fixed, *files]
            )
        return self._composed[files]

    def _split(self, overrides: Sequence[str]) -> tuple[tuple[str, ...], list[Override]]:
        """Return the overrides that choose files or add keys, and those that set a value."""
        parsed = [
            override for text in overrides if not (override := parse(text)).is_hydra_override()
        ]
        values = [override for override in parsed if self._is_value(override)]
        return tuple(_line_of(override) for override in parsed if override not in values), values

    def _is_value(self, override: Override) -> bool:
        return (
            override.type is OverrideType.CHANGE
            and override.package is None
            and not override.is_sweep_override()
            and not self._loader.repository.group_exists(override.key_or_group)
        )


@functools.lru_cache(maxsize=1024)  # 2 ms each, and the jobs of a grid or study repeat them
def parse(override: str) -> Override:
    """Return an override as Hydra reads it; cached, so it must not be changed.

    Raises:
        HydraException: it cannot be read.
    """
    (parsed,) = OverridesParser.create().parse_overrides(overrides=[override])
    return parsed


def _line_of(override: Override) -> str:
    """Return ``override`` as it was typed."""
    assert override.input_line is not None
    return override.input_line


def _note_overrides(cfg: DictConfig, parsed: Sequence[Override]) -> None:
    """List ``parsed`` in Hydra's own part of a config."""
    ours = [override for override in parsed if not override.is_hydra_override()]
    naming = cfg.hydra.job.config.override_dirname
    cfg.hydra.overrides.task = [_line_of(override) for override in ours]
    cfg.hydra.job.override_dirname = get_overrides_dirname(
        overrides=ours,
        kv_sep=naming.kv_sep,
        item_sep=naming.item_sep,
        exclude_keys=naming.exclude_keys,
    )
