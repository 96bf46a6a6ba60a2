"""Expand a command into the jobs of a grid, and check that each has a folder of its own."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Sequence
from pathlib import PurePath

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ppo_lab.config.composer import parse
from ppo_lab.utils.errors import ConfigError

__all__ = ["MOST_JOBS", "check_dimensions", "check_folders", "check_inside", "expand"]

MOST_JOBS = 10_000
"""Most jobs of a grid, checked in a minute or two, and most values of one key."""
_LOG = logging.getLogger(__name__)
_MOST_BYTES = 255  # of a name, in every usual file system


def expand(
    loader: ConfigLoader, command: DictConfig, overrides: Sequence[str]
) -> list[tuple[str, ...]]:
    """Return each job's overrides, as Hydra's own sweeper expands them.

    Raises:
        ConfigError: the grid is empty or too large, or varies what belongs to the whole command.
    """
    params = OmegaConf.select(command, "hydra.sweeper.params") or {}
    parser = OverridesParser.create(config_loader=loader)  # glob(*) asks it for options
    of_file = parser.parse_overrides([f"{key}={value}" for key, value in params.items()])
    typed = parser.parse_overrides([*overrides])
    for override in [*of_file, *(o for o in typed if o.is_sweep_override())]:
        if override.is_hydra_override():
            allowed = "Hydra's own keys belong to the command, not to its jobs"
            raise ConfigError(*_halves(str(override.input_line)), allowed)
    typed = [override for override in typed if not override.is_hydra_override()]
    varied = {o.get_key_element(): o for o in [*of_file, *typed]}.values()
    num_jobs = math.prod(_num_values(o) for o in varied if o.is_sweep_override())
    if num_jobs > MOST_JOBS:
        texts = " ".join(str(o.input_line) for o in varied if o.is_sweep_override())
        allowed = f"a grid of {num_jobs:,} jobs; at most {MOST_JOBS:,}"
        raise ConfigError(*_halves(texts), allowed)
    (batch,) = BasicSweeper.split_arguments([*of_file, *typed], max_batch_size=None)
    return [tuple(job) for job in batch]


def _num_values(override: Override) -> int:
    """Return the number of values over which ``override`` sweeps; 1 for an interval.

    Raises:
        ConfigError: there are none, or too many to list.
    """
    sweep, text = override.value(), str(override.input_line)
    if isinstance(sweep, RangeSweep):
        start, stop, step = (float(x or 0) for x in (sweep.start, sweep.stop, sweep.step))
        if not (step and all(map(math.isfinite, (start, stop, step)))):
            raise ConfigError(*_halves(text), "a range needs finite ends and a step other than 0")
        num_values = max(math.ceil((stop - start) / step), 0)
    elif isinstance(sweep, ChoiceSweep):
        num_values = len(sweep.list)
    elif isinstance(sweep, Glob):
        num_values = len(list(override.sweep_string_iterator()))
    else:  # an interval, which cannot be listed
        num_values = 1
    if num_values == 0:
        raise ConfigError(*_halves(text), "holds no value")
    if num_values > MOST_JOBS:
        allowed = f"holds {num_values:,} values; at most {MOST_JOBS:,}"
        raise ConfigError(*_halves(text), allowed)
    return num_values


def check_dimensions(command: DictConfig, overrides: Sequence[str]) -> None:
    """Check over what a study searches, before its space is read: a key of a run, and once.

    Raises:
        ConfigError: a key is the command's, is both fixed and searched, or has too many values.
    """
    parsed = list(map(parse, overrides))
    searched = {o.get_key_element(): str(o.input_line) for o in parsed if o.is_sweep_override()}
    for override in parsed:
        key, text = override.get_key_element().lstrip("+~"), str(override.input_line)
        named = key.removeprefix("study.space.")
        if override.is_sweep_override():
            _num_values(override)
            if key == named and re.match(r"(study|sweep|tracking|hydra|report)\b", key):
                allowed = "is a key of the whole study, which its trials cannot vary"
                raise ConfigError(*_halves(text), allowed)
        other = searched.get(named) or searched.get(f"study.space.{named}")
        if other is not None and other != text:
            raise ConfigError(*_halves(text), f"the key is searched as well: {other}")
        if key != named or override.is_sweep_override() or named not in command.study.space:
            continue
        _LOG.warning("%s is fixed: this study no longer searches %s", text, named)
    for key, value in command.study.space.items():
        _num_values(_dimension(str(key), str(value)))


def _dimension(key: str, text: str) -> Override:
    try:
        return parse(f"{key}={text}")
    except HydraException as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"study.space.{key}", text, f"cannot be read: {first}") from None


def check_folders(subdirs: Sequence[str]) -> None:
    """Raise ``ConfigError`` unless each job's ``hydra.sweep.subdir`` is a folder of its own."""
    owners: dict[str, int] = {}
    for number, subdir in enumerate(subdirs):
        check_inside("hydra.sweep.subdir", subdir)
        owner = owners.setdefault(os.path.normpath(subdir), number)
        if owner != number:
            allowed = f"jobs {owner} and {number} would share this folder; add ${{hydra.job.num}}"
            raise ConfigError("hydra.sweep.subdir", subdir, allowed)


def check_inside(key: str, folder: str) -> None:
    """Raise ``ConfigError`` unless ``folder`` is a relative path that leads downwards."""
    path = PurePath(folder)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ConfigError(key, folder, "must be a folder below, without .. and not absolute")
    if any(len(os.fsencode(part)) > _MOST_BYTES for part in path.parts):
        allowed = f"a folder's name has at most {_MOST_BYTES} bytes"
        raise ConfigError(key, f"{folder[:40]}...", allowed)


def _halves(text: str) -> tuple[str, str]:
    key, _, value = text.lstrip("+~").partition("=")
    return key, value
