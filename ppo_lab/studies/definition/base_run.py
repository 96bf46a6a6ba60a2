"""The run that the trials of a study vary, composed and checked before anything is created."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from ppo_lab.config.compose import Composer, load
from ppo_lab.config.run import Config
from ppo_lab.studies.definition.parameter import Choice
from ppo_lab.utils.errors import ConfigError, closest_match

__all__ = ["BaseRun"]


class BaseRun:
    """The run that every trial of a study varies."""

    def __init__(self, composer: Composer, fixed: Sequence[str] = ()) -> None:
        """Compose runs with ``composer``; the overrides ``fixed`` hold for all of them."""
        self._composer, self._fixed = composer, tuple(fixed)
        self.choices: Mapping[str, str] = composer.choices(self._fixed)
        """The option of each config group, Hydra's ``hydra.runtime.choices``."""

    def is_group(self, key: str) -> bool:
        """Return whether ``key`` is a config group: a folder of ``conf/``."""
        return key in self.choices

    def choices_with(self, overrides: Sequence[str]) -> Mapping[str, str]:
        """Return the option of each group under ``overrides``."""
        return self._composer.choices([*self._fixed, *overrides])

    def fixing(self, *overrides: str) -> BaseRun:
        """Return this base with ``overrides`` fixed as well."""
        return BaseRun(self._composer, [*self._fixed, *overrides])

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """Return the checked config of the base with ``overrides``, ``key=value`` each.

        Raises:
            ConfigError: such a run could not start.
        """
        try:
            run = self._composer.run([*self._fixed, *overrides])
        except ConfigCompositionException as error:
            cause = error.__cause__
            if not isinstance(cause, OmegaConfBaseException):
                raise
            value = cause.value if isinstance(cause, ValidationError) else "..."
            raise ConfigError(str(cause.full_key), value, str(cause).splitlines()[0]) from None
        return load(run)

    def value(self, key: str, overrides: Sequence[str] = ()) -> Choice:
        """Return the value of ``key`` as one would type it: ``none`` for what is off.

        Raises:
            ConfigError: there is no such key.
        """
        if self.is_group(key):
            return self.choices[key]
        run = self._composer.run([*self._fixed, *overrides])
        parent, _, name = key.rpartition(".")
        node: Any = OmegaConf.select(run, parent) if parent else run
        if not isinstance(node, DictConfig) or name not in node:
            names = [*map(str, node)] if isinstance(node, DictConfig) else []
            close = closest_match(name, [*names, *(self.choices if not parent else ())])
            hint = f"; did you mean {parent}{'.' if parent else ''}{close}?" if close else ""
            raise ConfigError(key, "...", f"there is no such key{hint}")
        return _typed(node[name])


def _typed(value: Any) -> Choice:  # noqa: ANN401 - whatever the config holds
    """Return ``value`` as ``parameter.values_of`` reads it from an override."""
    if value is None:
        return "none"
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bool | int | float | str):
        return value
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return str(plain).replace(" ", "").replace("'", "")
