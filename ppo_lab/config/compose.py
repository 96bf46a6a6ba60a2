"""Compose a command line into checked configs, before Hydra makes a folder or starts a job.

Hydra makes a job's folder before it calls the job. So all jobs of a command are composed and
checked here first, with Hydra's own loader.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ppo_lab.config.checks import check_whole, nested_keys
from ppo_lab.config.composer import Composer, open_hydra, parse, without_hydra
from ppo_lab.config.foreign import CheckedFileSource, check_file
from ppo_lab.config.grid import check_dimensions, check_folders, expand
from ppo_lab.config.hydra_part import check_hydra_part
from ppo_lab.config.other_names import refuse_other_names
from ppo_lab.config.run import Config
from ppo_lab.config.study import CommandConfig, StudyConfig, refuse_renamed
from ppo_lab.envs.text.config import TextConfig
from ppo_lab.memory import STRATEGIES, AutoMemory
from ppo_lab.networks import NETWORKS
from ppo_lab.ppo.baselines import BASELINES, AutoBaseline
from ppo_lab.utils.errors import REDACTED, ConfigError, did_you_mean
from ppo_lab.utils.paths import SWEEPS_DIR
from ppo_lab.utils.redaction import mask

__all__ = [
    "SWEEP_FILES", "Command", "Job", "check_command", "check_config_dir", "check_jobs",
    "compose_command", "known_keys", "load", "make_folder", "register",
]  # fmt: skip

SWEEP_FILES: dict[str, Path] = {}
"""The file of each option of ``sweep=``."""
_OF_WANDB = "wandb"
"""A file of ``sweeps/`` that is for the command ``wandb sweep``."""
_MAY_BE_SECRET = re.compile(r"(?i)://|@|key|token|secret|pass|[\w-]{20,}")


class Job(NamedTuple):
    """One run of a command."""

    overrides: tuple[str, ...]
    config: Config
    is_multirun: bool  # whether the command is a grid: by -m, ``sweep=``, or a file's hydra.mode
    subdir: str = ""  # of the job in its grid's folder


class Command(NamedTuple):
    """A command that has been checked."""

    config: DictConfig  # with Hydra's own part
    jobs: list[Job]  # none for a study

    @property
    def is_multirun(self) -> bool:
        """Whether it is a grid or a study."""
        return not self.jobs or self.jobs[0].is_multirun


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
    store.store(group="env/schema", name="text", node=TextConfig)
    for name, network in NETWORKS.items():
        store.store(group="network/schema", name=name, node=network)
    for name, strategy in {AutoMemory.name: AutoMemory, **STRATEGIES}.items():
        store.store(group="memory/schema", name=name, node=strategy)
    for name, baseline in {AutoBaseline.name: AutoBaseline, **BASELINES}.items():
        store.store(group="baseline/schema", name=name, node=baseline)
    _register_sweeps(SWEEPS_DIR)
    OmegaConf.register_new_resolver("unused_dir", str, replace=True)
    Plugins.instance()  # registers Hydra's own sources
    SourcesRegistry.instance().types["file"] = CheckedFileSource


def _itself(store: ConfigStore, memo: dict[int, Any]) -> ConfigStore:  # noqa: ARG001
    return store


def make_folder(command: DictConfig, key: str) -> Path:
    """Return the folder ``key`` of Hydra's own part, fixed from now on; make an unused one.

    ``${unused_dir:PATH}`` makes ``PATH``, or ``PATH-2``, ``PATH-3``, ... if it exists already, so
    that two commands started in one second get different folders. It does so here only: not while
    a command is checked or shown.
    """
    OmegaConf.register_new_resolver("unused_dir", _make_unused, replace=True)
    try:
        folder = str(OmegaConf.select(command, key))
    finally:
        OmegaConf.register_new_resolver("unused_dir", str, replace=True)
    with read_write(command), open_dict(command):
        OmegaConf.update(command, key, folder)
        # On another machine a job's config is composed again, from overrides alone.
        command.hydra.overrides.hydra.append(f"{key}={_quoted(folder)}")
    return Path(folder)


def _quoted(text: str) -> str:
    """Return ``text`` as a value in Hydra's grammar, without interpolations."""
    escaped = text.replace("\\", r"\\").replace("'", r"\'").replace("${", r"\${")
    return f"'{escaped}'"


def _make_unused(path: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        candidate = path if number == 1 else f"{path}-{number}"
        with contextlib.suppress(FileExistsError):
            Path(candidate).mkdir()
            break
    return candidate


def _register_sweeps(folder: Path) -> None:
    """Register every YAML file in or below ``folder`` as an option of ``sweep=``."""
    for path in sorted(folder.rglob("*.yaml")):
        if path.stem == _OF_WANDB:
            continue
        check_file(path)
        option = path.relative_to(folder).with_suffix("")
        SWEEP_FILES[option.as_posix()] = path
        group = ("sweep" / option).parent.as_posix()
        node = OmegaConf.load(path)
        ConfigStore.instance().store(group=group, name=option.name, node=node, package="_global_")


def load(cfg: DictConfig) -> Config:
    """Return the ``Config`` of a composed run; raise ``ConfigError`` if it cannot be used."""
    _refuse_unknown_keys(cfg)
    config = Config(**_values(cfg, [field.name for field in dataclasses.fields(Config)]))
    config.check_env()
    return config


def _values(cfg: DictConfig, keys: Iterable[str]) -> dict[str, Any]:
    values = {key: cfg[key] for key in keys}
    return {k: OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for k, v in values.items()}


def check_jobs(
    overrides: Sequence[str],
    *,
    is_multirun: bool = False,
    config_dir: str | None = None,
    config_name: str | None = None,
    check_study: Callable[[DictConfig, ConfigLoader], None] | None = None,
) -> list[Job]:
    """Return every job of a command, composed and checked; see ``check_command``."""
    with open_hydra(check_config_dir(config_dir)) as hydra:
        return check_command(
            hydra,
            overrides,
            is_multirun=is_multirun,
            config_name=config_name,
            check_study=check_study,
        ).jobs


def check_config_dir(config_dir: str | None) -> Path | None:
    """Return the user's own folder of configs, its sweeps registered."""
    if config_dir is None:
        return None
    folder = Path(config_dir)
    if not folder.is_dir():
        raise ConfigError("--config-dir", config_dir, "there is no such folder")
    _register_sweeps(folder.resolve() / "sweeps")
    return folder


def check_command(
    hydra: Hydra,
    overrides: Sequence[str],
    *,
    is_multirun: bool,
    config_name: str | None = None,
    check_study: Callable[[DictConfig, ConfigLoader], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Command:
    """Return a command with every job, composed and checked. Creates nothing.

    ``check_study`` is called in place of composing jobs if the command is a study; ``progress``
    with the number of jobs checked so far, and of all jobs.

    Raises:
        ConfigError: a value cannot be used.
        HydraException, OmegaConfBaseException: Hydra could not compose.
    """
    loader = hydra.config_loader
    command = compose_command(hydra, overrides, config_name)
    if command.study is not None and check_study is not None:
        check_dimensions(command, overrides)
        check_study(command, loader)
        _refuse_credentials(overrides)
        return Command(command, [])
    _refuse_credentials(overrides)
    launcher = command.hydra.launcher
    if str(launcher.get("_target_")).startswith("hydra_plugins.ppo_lab_launcher."):
        for key in ("num_workers", "max_lanes"):
            check_whole(f"hydra.launcher.{key}", launcher[key], auto=True, at_most=10_000)
    is_grid = (
        is_multirun
        or command.hydra.mode is RunMode.MULTIRUN
        or command.hydra.runtime.choices.get("sweep") is not None
    )
    if not is_grid and not any(parse(override).is_sweep_override() for override in overrides):
        HydraConfig.instance().cfg = command  # type: ignore[assignment]
        alone = Job(tuple(overrides), load(command), is_multirun=False)
        return Command(command, [alone])
    batches = expand(loader, command, overrides) if is_grid else [tuple(overrides)]
    loads, jobs = _JobLoader(Composer(loader, command)), list[Job]()
    for number, batch in enumerate(batches):
        jobs.append(loads.job(number, batch, is_grid=is_grid))
        if progress is not None:
            progress(len(jobs), len(batches))
    if is_grid:
        check_folders([job.subdir for job in jobs])
    return Command(command, jobs)


def compose_command(
    hydra: Hydra, overrides: Sequence[str], config_name: str | None = None
) -> DictConfig:
    """Return a command as Hydra composes it to find out what to run, Hydra's own part checked.

    Raises: see ``check_command``.
    """
    typed = dict(text.lstrip("+~").partition("=")[::2] for text in overrides)
    refuse_renamed(typed)
    refuse_other_names(typed)
    _refuse_null(hydra.config_loader, typed)
    # As Hydra does to find out whether it should sweep, and over what.
    composed = functools.partial(
        hydra.compose_config,
        config_name=config_name or "config",
        run_mode=RunMode.MULTIRUN,
        validate_sweep_overrides=False,
    )
    try:
        command = composed(overrides=[*overrides])
    except (AssertionError, ConfigCompositionException) as error:
        # Hydra's, at a key below one that is null, or at an option of it
        key = next((key for key in typed if key.startswith(("study.", "study/"))), None)
        is_missing = isinstance(error, AssertionError) or "No match in the defaults" in str(error)
        if key is None or not is_missing:
            raise
        allowed = "there is no study to set this of; add study=default or a sweep=..."
        raise ConfigError(key, typed[key], allowed) from None
    check_hydra_part(command, overrides)
    return command


def _refuse_credentials(overrides: Sequence[str]) -> None:
    """Raise ``ConfigError`` for a password or token in an override, which Hydra writes to files."""
    for text in overrides:
        if _MAY_BE_SECRET.search(text) and mask(text) != text:
            key = text.lstrip("+~").partition("=")[0]
            allowed = "holds a password or token, and commands are saved; use ${oc.env:NAME}"
            raise ConfigError(key, REDACTED, allowed)


def _refuse_null(loader: ConfigLoader, typed: Mapping[str, str]) -> None:
    for group in ("env", "network", "memory", "tracking"):
        if typed.get(group) in ("null", "~", ""):
            options = ", ".join(loader.get_group_options(group))
            raise ConfigError(group, typed[group], f"must be one of {options}")


class _JobLoader:
    """Loads the jobs of a grid, each from another one of the same files where that is the same."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._loaded: dict[tuple[str, ...], tuple[Config, frozenset[str]]] = {}

    def job(self, number: int, overrides: tuple[str, ...], *, is_grid: bool) -> Job:
        """Return a job, checked."""
        plain = self._composer.plain_keys(overrides)
        if plain is None or plain[0] not in self._loaded:
            with self._composer.composed(overrides, number) as cfg:
                job = Job(overrides, load(cfg), is_grid, str(cfg.hydra.sweep.subdir))
            if plain is not None:
                self._loaded[plain[0]] = job.config, plain[1]
            return job
        files, keys = plain
        other, its_keys = self._loaded[files]
        with self._composer.values(overrides) as cfg:
            config = dataclasses.replace(other, **_values(cfg, keys | its_keys))
        config.check_env()
        return Job(overrides, config, is_grid, str(number))


@functools.cache
def known_keys() -> frozenset[str]:
    """Return every key of the default config and of a study, dotted."""
    with open_hydra() as hydra:
        default = hydra.compose_config("config", overrides=[], run_mode=RunMode.RUN)
    values: Any = OmegaConf.to_container(without_hydra(default))
    study = {f"study.{field.name}" for field in dataclasses.fields(StudyConfig)}
    return frozenset(nested_keys(values)) | study


def _refuse_unknown_keys(node: DictConfig, prefix: str = "") -> None:
    """Raise ``ConfigError`` for keys added by ``+key=value``, which nothing reads."""
    kind: Any = OmegaConf.get_type(node)
    if not dataclasses.is_dataclass(kind):
        return  # a free dictionary, such as env.kwargs
    names = {field.name for field in dataclasses.fields(kind)}
    for key in map(str, node):
        if key not in names and f"{prefix}{key}" != "hydra":  # Hydra's own part
            allowed = f"there is no such key{did_you_mean(key, names, prefix=prefix)}"
            raise ConfigError(f"{prefix}{key}", node[key], allowed)
        child = node._get_node(key) if key in names else None
        if isinstance(child, DictConfig):
            _refuse_unknown_keys(child, f"{prefix}{key}.")
