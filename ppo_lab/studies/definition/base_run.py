"""The run that the trials of a study vary, composed and checked before anything is created."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from ppo_lab.config.compose import load
from ppo_lab.config.composer import Composer
from ppo_lab.config.run import Config
from ppo_lab.studies.definition.parameter import Choice
from ppo_lab.utils.errors import ConfigError, did_you_mean

__all__ = ["BaseRun"]


@dataclass(frozen=True)
class BaseRun:
    """The run that every trial of a study varies."""

    composer: Composer
    fixed: tuple[str, ...] = ()
    """Overrides of every trial, beside the composer's own."""

    def choices(self, overrides: Sequence[str] = ()) -> Mapping[str, str]:
        """Return the option of each config group, Hydra's ``hydra.runtime.choices``."""
        return self.composer.choices([*self.fixed, *overrides])

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """Return the checked config of the base with ``overrides``, ``key=value`` each."""
        try:
            run = self.composer.run([*self.fixed, *overrides])
        except ConfigCompositionException as error:
            cause = error.__cause__
            if not isinstance(cause, OmegaConfBaseException):
                raise
            value = cause.value if isinstance(cause, ValidationError) else "..."
            raise ConfigError(str(cause.full_key), value, str(cause).splitlines()[0]) from None
        return load(run)

    def value(self, key: str, overrides: Sequence[str] = ()) -> Choice:
        """Return the value of ``key`` as one would type it: ``none`` for what is off."""
        if key in (groups := self.choices()):
            return groups[key]
        run = self.composer.run([*self.fixed, *overrides])
        parent, _, name = key.rpartition(".")
        node: Any = OmegaConf.select(run, parent) if parent else run
        if not isinstance(node, DictConfig) or name not in node:
            names = {*map(str, node)} if isinstance(node, DictConfig) else set()
            valid, prefix = names if parent else names | groups.keys(), key.removesuffix(name)
            hint = did_you_mean(name, valid, prefix=prefix)
            raise ConfigError(key, "...", f"there is no such key{hint}")
        return _typed(node[name])


def _typed(value: Any) -> Choice:  # noqa: ANN401 - whatever the config holds
    """Return ``value`` as ``parameter.values_of`` reads it from an override."""
    if value is None:
        return "none"
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Choice):
        return value
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return str(plain).replace(" ", "").replace("'", "")
