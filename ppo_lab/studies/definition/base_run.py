"""What a trial of a study would run, found out before anything is created.

Hydra composes each combination of groups once (0.1 s); keys below them are then set on a copy
(5 ms), so that hundreds of corners of a search space can be checked while a person waits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppo_lab.config.compose import load
from ppo_lab.config.run import Config
from ppo_lab.studies.definition.parameter import Choice, parse_override
from ppo_lab.utils.errors import ConfigError, closest_match

__all__ = ["BaseRun", "Composed"]


class Composed(NamedTuple):
    """A run as Hydra composed it."""

    run: DictConfig
    """As ``ppo_lab.config.compose.load`` takes it."""
    choices: Mapping[str, str]
    """The option of each group, Hydra's ``hydra.runtime.choices``."""


class BaseRun:
    """The run that every trial of a study varies."""

    def __init__(self, compose: Callable[[Sequence[str]], Composed]) -> None:
        """Take what composes a run from overrides added to the study's own fixed ones."""
        self._compose = compose
        self._composed: dict[tuple[str, ...], Composed] = {}
        self.choices = self._group(()).choices

    def is_group(self, key: str) -> bool:
        """Return whether ``key`` chooses a file of ``conf/``."""
        return key in self.choices

    def choices_with(self, overrides: Sequence[str]) -> Mapping[str, str]:
        """Return the option of each group once ``overrides`` have chosen theirs."""
        return self._group(self._of_groups(overrides)).choices

    def fixing(self, *overrides: str) -> BaseRun:
        """Return this base with ``overrides`` fixed as well."""
        return BaseRun(lambda more: self._compose([*overrides, *more]))

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """Return the checked config of the base with ``overrides``, ``key=value`` each.

        Raises:
            ConfigError: such a run could not start.
        """
        groups = self._of_groups(overrides)
        run = copy.deepcopy(self._group(groups).run)
        for text in overrides:
            if text not in groups:
                _set(run, text)
        return load(run)

    def value(self, key: str, overrides: Sequence[str] = ()) -> Choice:
        """Return the value of ``key`` as one would type it: ``none`` for what is off.

        Raises:
            ConfigError: there is no such key.
        """
        if self.is_group(key):
            return self.choices[key]
        run = self._group(tuple(overrides)).run
        parent, _, name = key.rpartition(".")
        node: Any = OmegaConf.select(run, parent) if parent else run
        if not isinstance(node, DictConfig) or name not in node:
            names = [*map(str, node)] if isinstance(node, DictConfig) else []
            close = closest_match(name, [*names, *(self.choices if not parent else ())])
            hint = f"; did you mean {parent}{'.' if parent else ''}{close}?" if close else ""
            raise ConfigError(key, "...", f"there is no such key{hint}")
        return _typed(node[name])

    def _of_groups(self, overrides: Sequence[str]) -> tuple[str, ...]:
        return tuple(text for text in overrides if self.is_group(_key(text)))

    def _group(self, overrides: tuple[str, ...]) -> Composed:
        if overrides not in self._composed:
            self._composed[overrides] = self._compose(overrides)
        return self._composed[overrides]


def _key(override: str) -> str:
    return override.partition("=")[0]


def _set(run: DictConfig, override: str) -> None:
    key, _, text = override.partition("=")
    try:
        OmegaConf.update(run, key, parse_override(key, text).value())
    except OmegaConfBaseException as error:
        raise ConfigError(key, text, str(error).splitlines()[0]) from None


def _typed(value: Any) -> Choice:  # noqa: ANN401 - whatever the config holds
    """Return ``value`` as ``conditions.choices_of`` would read it from an override."""
    if value is None:
        return "none"
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bool | int | float | str):
        return value
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return str(plain).replace(" ", "").replace("'", "")
