"""``fit=true``: the largest run that fits its memory budget, found by forecasts alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ppo_lab.config.choices import FitOver
from ppo_lab.config.run import Config
from ppo_lab.forecasting.budget import (
    budget_bytes,
    named_networks,
    over_budget,
    resolve_memory,
)
from ppo_lab.forecasting.forecast import forecast
from ppo_lab.utils.errors import ConfigError

__all__ = ["Fitted", "fit"]

_GIB, _MIB = 1024**3, 1024**2
_FIRST, _GROWTH = 1024, 64  # the sizes tried: a forecast of very many rows is slow
_OF_A_SEARCH = ("fit", "fit_over", "forecast", "forecast_format")


class _Candidate(NamedTuple):
    """A run of another size."""

    changes: dict[str, str]
    config: Config


@dataclass(frozen=True)
class Fitted:
    """The largest run that fits; ``str`` says what it needs, and what the next larger one would."""

    config: Config
    """With its memory strategy chosen."""
    changes: dict[str, str]
    """Keys that were set, with their values."""
    needed: int
    """Bytes on the device, CUDA's own included."""
    budget: int
    """Bytes."""
    refused: str
    """What does not fit, or why there is nothing larger."""

    def __str__(self) -> str:
        changes = _words(self.changes) or "the run as it is"
        return f"{changes}: {_size(self.needed)} of {_size(self.budget)}; {self.refused}"

    def overrides(self, typed: Sequence[str], asked: Config) -> tuple[str, ...]:
        """Return the command line of this run; ``typed`` and ``asked`` are those of the search."""
        keys = [(text.lstrip("+~").partition("=")[0], text) for text in typed]
        left_out = {*self.changes, *_OF_A_SEARCH}
        kept = [
            text
            for key, text in keys
            if key not in left_out and _value_below(asked, key) == _value_below(self.config, key)
        ]
        return *kept, *(f"{key}={value}" for key, value in self.changes.items())


def fit(config: Config) -> Fitted:
    """Return the largest run like ``config`` that fits its budget; ``fit_over`` is what may grow.

    Raises:
        ConfigError: There is no budget, or nothing fits.
    """
    if (budget := budget_bytes(config)) is None:
        given = "none" if config.vram_budget_gib is None else config.vram_budget_gib
        allowed = "fit=true needs a budget: a number of GiB, or auto with a CUDA device"
        raise ConfigError("vram_budget_gib", given, allowed)
    if config.fit_over is FitOver.memory:
        return _fit_memory(config, budget)
    candidates = _CANDIDATES[config.fit_over](config)
    if not len(candidates):
        raise ConfigError("fit_over", config.fit_over.value, "there is none to choose from")
    best = _last_that_fits(lambda index: _needed(candidates[index]) - budget, len(candidates))
    if best < 0:
        smallest = candidates[0]
        needs = f"{_words(smallest.changes)} needs {_size(_needed(smallest))}"
        raise _nothing_fits(config, budget, needs)
    refused = "nothing larger may be asked for"
    if best + 1 < len(candidates):
        larger = candidates[best + 1]
        refused = f"{_words(larger.changes)} is {_size(_needed(larger) - budget)} too much"
    changes, found = candidates[best]
    return Fitted(resolve_memory(found), changes, _needed(candidates[best]), budget, refused)


def _fit_memory(config: Config, budget: int) -> Fitted:
    """Return the change of strategy and options that costs least, of those that ``advice`` tries.

    One that changes the numbers of a run costs more than any that does not; then bytes over the bus
    count, then what is needed.
    """
    config = resolve_memory(config)
    if (excess := over_budget(config)) is None:
        changes = {"memory": config.memory.name}
        return Fitted(config, changes, forecast(config).total, budget, "it fits as it is")
    of_memory = [c for c in excess.changes if all(o.startswith("memory") for o in c.overrides)]
    fitting = [change for change in of_memory if change.total <= budget]
    if not fitting:
        least = min(of_memory, key=lambda change: change.total, default=None)
        at_best = f"; the least is {least}" if least else ""
        needs = f"memory={config.memory.name} needs {_size(excess.needed)}{at_best}"
        raise _nothing_fits(config, budget, needs)
    best = min(fitting, key=lambda c: (bool(c.alters), c.more_moved, c.total))
    changes = dict(override.split("=") for override in best.overrides)
    refused = f"memory={config.memory.name} needs {_size(excess.needed)}"
    if best.price:
        refused = f"{best.price}; {refused}"
    assert best.config is not None
    return Fitted(best.config, changes, best.total, budget, refused)


class _Envs(Sequence[_Candidate]):
    """Every allowed number of environments, made when it is asked for."""

    def __init__(self, config: Config) -> None:
        parts = config.num_minibatches * config.memory.num_micro_batches
        step = parts if config.keeps_sequences else parts // math.gcd(parts, config.rollout_steps)
        step = math.lcm(step, config.group_size)
        self._config, self._numbers = config, range(step, config.most_envs + 1, step)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> _Candidate:  # type: ignore[override]
        num_envs, steps = self._numbers[index], self._config.total_steps
        changes = {"num_envs": str(num_envs)}
        least = num_envs * self._config.rollout_steps  # one rollout
        if steps < least and not self._config.whole_episodes:
            steps, changes["total_steps"] = least, str(least)
        return _Candidate(
            changes, dataclasses.replace(self._config, num_envs=num_envs, total_steps=steps)
        )


def _minibatches(config: Config) -> list[_Candidate]:
    """Return every allowed number of minibatches, the most first."""
    small = [n for n in range(1, math.isqrt(config.num_units) + 1) if config.num_units % n == 0]
    numbers = {*small, *(config.num_units // n for n in small)}
    options = {str(number): number for number in sorted(numbers, reverse=True)}
    return list(_allowed(config, "num_minibatches", options))


def _networks(config: Config) -> list[_Candidate]:
    """Return the named networks of this kind, the smallest first."""
    options = {name: network for _, name, network in named_networks(config)}
    return list(_allowed(config, "network", options))


def _allowed(config: Config, key: str, options: Mapping[str, Any]) -> Iterator[_Candidate]:
    for text, value in options.items():
        try:
            changed = dataclasses.replace(config, **{key: value})
            changed.check_env()
        except ConfigError:
            continue  # such as a network that reads fewer steps
        yield _Candidate({key: text}, changed)


_CANDIDATES: dict[FitOver, Callable[[Config], Sequence[_Candidate]]] = {
    FitOver.num_envs: _Envs,
    FitOver.num_minibatches: _minibatches,
    FitOver.network: _networks,
}
"""What may be chosen from, the smallest first."""


def _needed(candidate: _Candidate) -> int:
    return forecast(resolve_memory(candidate.config)).total


def _last_that_fits(excess: Callable[[int], int], count: int) -> int:
    """Return the last of ``count`` indices with an ``excess`` of at most 0; -1 if there is none.

    Extrapolates, then interpolates: memory is piecewise linear in most sizes, and one piece takes
    four calls. Bisects where that does not halve the interval. ``excess`` should rise.
    """
    low, high = 0, min(_FIRST, count - 1)
    if (at_low := excess(low)) > 0:
        return -1
    while (at_high := excess(high)) <= 0:
        if high == count - 1:
            return high
        ahead = high + (high - low) * -at_high // max(at_high - at_low, 1) + 1
        ahead = min(ahead, high * _GROWTH, count - 1)
        low, at_low, high = high, at_high, ahead
    while high - low > 1:
        span = high - low
        guess = low + span * -at_low // (at_high - at_low)
        for index in (guess, guess + 1, low + span // 2):
            if low < index < high:
                if (at := excess(index)) <= 0:
                    low, at_low = index, at
                else:
                    high, at_high = index, at
            if 2 * (high - low) <= span:
                break
    return low


def _nothing_fits(config: Config, budget: int, needs: str) -> ConfigError:
    return ConfigError("fit_over", config.fit_over.value, f"nothing fits {_size(budget)}: {needs}")


def _value_below(config: Config, key: str) -> object:
    """Return the value of a dotted key; None where the key is not below a part of ``config``."""
    owner, _, name = key.partition(".")
    return getattr(getattr(config, owner, None), name, None) if name else None


def _words(changes: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in changes.items())


def _size(num_bytes: int) -> str:
    if num_bytes < _GIB / 10:
        return f"{num_bytes / _MIB:,.2f} MiB"
    return f"{num_bytes / _GIB:,.2f} GiB"
