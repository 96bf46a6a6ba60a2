"""Error messages for a command line that cannot be run: the override as typed, and its remedy.

They replace Hydra's and OmegaConf's own messages, which are about structs, nodes and merging.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from ppo_lab.config.compose import SWEEP_FILES, known_keys
from ppo_lab.config.study import renamed
from ppo_lab.memory import STRATEGIES
from ppo_lab.ppo.baselines import BASELINES
from ppo_lab.utils.errors import REDACTED, ConfigError, did_you_mean
from ppo_lab.utils.redaction import mask

__all__ = ["explain"]

_EXPECTED = (
    (r"could not be converted to Float", "must be a number"),
    (r"could not be converted to Integer", "must be a whole number"),
    (r"is not a valid bool", "must be true or false"),
    (r"is not Optional", "must have a value"),
    (r"expected one of \[(.*)\]", r"must be one of \1"),
    (r"Invalid value assigned: .* is not a ListConfig", "must be a list, such as [256,256]"),
)

_NO_VALUE = "write key=value, such as epsilon=0.1"
_GRID = "several values make a grid; add -m to run it"
_RESOLVING = re.compile(r"^\w+ raised while resolving interpolation: (value=\S+: )?")
_IN_FILE = re.compile(r"In '([^']+)': \w+ raised .*\s+Key '([^']+)'.*\s+full_key: (\S+)")

_VALUE_IN_FILE = re.compile(r"In '([^']+)': ValidationError raised .*\n(.*)\n\s+full_key: (\S+)")


def explain(error: Exception, overrides: Sequence[str]) -> str | None:
    """Return the message for ``error``, or None if it is not about the command line."""
    if isinstance(error, ConfigError):
        typed = None if error.value == REDACTED else _typed(error.key, overrides)
        return _line(typed or f"{error.key}={error.value}", error.allowed)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_option(error.missing_cfg_file, error.options or ())
    if isinstance(error, YAMLError):
        return _line("a YAML file cannot be read", " ".join(str(error).split()))
    if in_file := _IN_FILE.search(str(error)):
        file, name, key = in_file.groups()
        new = renamed(key)
        allowed = f"was renamed; write {new}" if new else _unknown_key(key)
        return _line(f"{name} in {_path_of(file)}", allowed)
    if in_file := _VALUE_IN_FILE.search(str(error)):
        file, reason, key = in_file.groups()
        return _line(f"{key} in {_path_of(file)}", _expected(reason))
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        return _bad_override(error, cause, overrides)
    if isinstance(error, MissingMandatoryValue):
        return _line(f"{error.full_key}", f"needs a value: {error.full_key}=...")
    if isinstance(error, OmegaConfBaseException):
        key = str(error.full_key)
        return _line(_typed(key, overrides) or key, _first_line(error))
    if isinstance(error, HydraException):
        return _by_message(_first_line(error), overrides)
    for override in overrides:
        if override.startswith("="):  # Hydra's parser fails on it with a bare ValueError
            return _line(override, f"names no key; {_NO_VALUE}")
    return None


def _path_of(config: str) -> str:
    """Return the file of a config that Hydra calls ``group/option``."""
    group, _, option = config.partition("/")
    return str(SWEEP_FILES.get(option)) if group == "sweep" else f"{config}.yaml"


def _line(what: str, allowed: str) -> str:
    return mask(f"ppo_lab: {what}: {allowed}")


def _first_line(error: BaseException) -> str:
    line = str(error).strip().splitlines()[0].rstrip(".:")
    return _RESOLVING.sub("", line)


def _typed(key: str, overrides: Sequence[str]) -> str | None:
    """Return the override that sets ``key``, as it was typed; None for several values or none."""
    typed = [o for o in overrides if o.lstrip("+~").partition("=")[0] == key and "," not in o]
    return typed[-1] if typed else None


def _unknown_option(missing: str, options: Sequence[str]) -> str:
    group, _, name = missing.rpartition("/")
    if not group:
        return _line(f"--config-name={name}", "there is no such file in the config folders")
    names = [option for option in options if option != "schema"]
    if missing.startswith("sweep/"):  # may be in folders
        group, name, names = "sweep", missing.removeprefix("sweep/"), [*SWEEP_FILES]
    allowed = f"must be one of {', '.join(names)}{did_you_mean(name, names)}"
    return _line(f"{group}={name}", allowed)


def _expected(reason: str) -> str:
    """Return what a value must be, by OmegaConf's ``reason`` to refuse it."""
    for pattern, expected in _EXPECTED:
        if match := re.search(pattern, reason):
            return match.expand(expected)
    return reason


def _bad_override(
    error: HydraException, cause: OmegaConfBaseException, overrides: Sequence[str]
) -> str:
    if isinstance(cause, ValidationError):
        reason = _expected(_first_line(cause))
        if isinstance(cause.value, float) and cause.value.is_integer():
            reason += f"; write {int(cause.value)}"
        key = str(cause.full_key)
        return _line(_typed(key, overrides) or f"{key}={cause.value}", reason)
    named = re.search(r"Could not override '([^']+)'", str(error))
    key = named[1] if named else str(cause.full_key)
    return _line(_typed(key, overrides) or key, _unknown_key(key))


def _unknown_key(key: str) -> str:
    if key.startswith("env.kwargs"):
        return f"arguments of gymnasium.make are added with a +: +{key}=..."
    options = {
        f"{group}={name}": {f"{group}.{field.name}" for field in dataclasses.fields(kind)}
        for group, kinds in (("memory", STRATEGIES), ("baseline", BASELINES))
        for name, kind in kinds.items()
    }
    if owners := [choice for choice, own in options.items() if key in own]:
        group, _, option = key.partition(".")
        names = " or ".join(choice.partition("=")[2] for choice in owners)
        return f"{option} is an option of {group}={names} alone"
    keys = known_keys().union(*options.values())
    as_deep = [other for other in keys if other.count(".") == key.count(".")]
    return "there is no such key" + (did_you_mean(key, as_deep) or did_you_mean(key, keys))


def _by_message(message: str, overrides: Sequence[str]) -> str:
    if named := re.search(r"Ambiguous value for argument '(.*)'", message):
        return _line(named[1], _GRID)
    if interval := next((o for o in overrides if "interval(" in o), None):
        if "none" in interval.lower():
            return _line(interval, "an interval cannot hold none; write choice(0.1, 0.2, none)")
        if "sweep" in message.lower():
            allowed = "an interval belongs to a study: add study=default; a grid takes a list"
            return _line(interval, allowed)
    if named := re.search(r"Could not append to config. An item is already at '(.*)'", message):
        return _line(f"+{named[1]}", f"the key exists; write {named[1]}=... without the +")
    if "requires --multirun" in message:
        return _line(" ".join(overrides), _GRID)
    if named := re.search(r"Error parsing override '(.*)'", message):
        allowed = "cannot be read; quote values that hold brackets or commas"
        return _line(named[1], allowed if "=" in named[1] else _NO_VALUE)
    if "LexerNoViableAlt" in message or "token recognition" in message:
        text = message.partition(": ")[2]
        return _line(text, "cannot be read; quote it: 'key=\"value\"'")
    if "no viable alternative" in message or "mismatched input" in message:
        return _line(" ".join(overrides), f"cannot be read, {message}; quote unusual values")
    return _line(" ".join(overrides), message)
