"""Whether a run fits the device, and what would make it fit."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf

from ppo_lab.config.run import Config, Dtype
from ppo_lab.devices.placement import Place
from ppo_lab.forecast.categories import Category
from ppo_lab.forecast.forecast import Forecast, cuda_context_bytes, forecast
from ppo_lab.memory import STRATEGIES, AutoMemory, MemoryStrategy
from ppo_lab.networks import MlpConfig
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.paths import CONF_DIR

__all__ = ["Change", "advice", "budget_bytes", "fits", "over_budget", "refusal", "resolve_memory"]

log = logging.getLogger(__name__)

_GIB = 1024**3
_MICRO_BATCHES = (2, 8)
_WORTH_TRYING_FRAC = 0.05  # of what is needed
_NUM_PAIRED = 4  # the best single changes, of which pairs are tried
_NUM_SHOWN = 5
_NOTICED_BYTES = 10 * 1024**2  # over the bus: less than a millisecond


@dataclass(frozen=True)
class Change:
    """Other settings, and what they would need."""

    overrides: tuple[str, ...]
    """As typed on the command line."""
    total: int
    """Bytes on the device."""
    saving: int
    """Bytes less than before."""
    alters: str
    """What it changes in the numbers of a run; empty where they stay the same."""
    more_moved: int = 0
    """Bytes more over the bus in each iteration."""

    @property
    def price(self) -> str:
        """What it changes, and what it costs on the bus; empty for nothing."""
        moved = f"{self.more_moved / _GIB:+,.1f} GiB PCIe"
        parts = [self.alters, moved if abs(self.more_moved) > _NOTICED_BYTES else ""]
        return "; ".join(part for part in parts if part)

    def __str__(self) -> str:
        beside = f" ({self.price})" if self.price else ""
        return f"{' '.join(self.overrides)}: {self.total / _GIB:.2f} GiB{beside}"


@dataclass(frozen=True)
class _Option:
    config: Config
    override: str
    alters: str


def budget_bytes(config: Config) -> int | None:
    """Return the device memory that ``config`` may take, CUDA's own included; None for any."""
    if config.vram_budget_gib is None:
        return None
    if config.vram_budget_gib != "auto":
        return int(config.vram_budget_gib * _GIB)
    if not torch.cuda.is_available() or config.torch_device.type != "cuda":
        return None
    device = config.torch_device
    # What this process has cached it can use again; its context is there already.
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if config.vram_limit_gib is not None:
        free = min(free, int(config.vram_limit_gib * _GIB))
    return free + cuda_context_bytes(device)


def fits(config: Config) -> bool:
    """Return whether ``config`` fits its budget; without a budget nothing is forecast."""
    return _excess(config) is None


def over_budget(config: Config) -> str | None:
    """Return in one line why ``config`` does not fit its budget and what would; None if it fits."""
    if (excess := _excess(config)) is None:
        return None
    fitting = [change for change in advice(config) if change.total <= excess.budget]
    gentlest = min(fitting, key=lambda change: bool(change.alters), default=None)
    remedy = f"fits with {gentlest}" if gentlest else "no change tried would fit"
    return f"{excess}; {remedy}"


def refusal(config: Config) -> str | None:
    """Return the same as a message with every change that would make it fit; None if it fits."""
    if (excess := _excess(config)) is None:
        return None
    changes = advice(config)
    fitting = [change for change in changes if change.total <= excess.budget]
    lines = [f"ppo_lab: {excess}"]
    lines.append("would fit, most saved first:" if fitting else "nothing fits; most saved first:")
    lines += [f"  {change}" for change in (fitting or changes)[:_NUM_SHOWN]]
    return "\n".join([*lines, "vram_budget_gib=none runs it all the same"])


@dataclass(frozen=True)
class _Excess:
    """What is needed, in bytes, where it is more than the budget."""

    needed: int
    budget: int

    def __str__(self) -> str:
        needed, budget = self.needed / _GIB, self.budget / _GIB
        return f"needs {needed:.2f} GiB by forecast, vram_budget_gib is {budget:.2f}"


def _excess(config: Config) -> _Excess | None:
    """Return by how much ``config`` is over its budget; None if it fits or cannot be forecast."""
    if (budget := budget_bytes(config)) is None:
        return None
    try:
        needed = forecast(config).total
    except (
        Exception
    ):  # such as a user's own network that asks for values: it may train all the same
        log.warning("this run cannot be forecast, so its budget is not checked", exc_info=True)
        return None
    return _Excess(needed, budget) if needed > budget else None


def advice(config: Config) -> list[Change]:
    """Return changes that would need less memory, most saved first: each the forecast run again.

    Pairs of the best are tried where no single change fits the budget. What cannot save as much as
    5 % is not tried: smaller activations, for instance, save no more than there are at the peak.
    """
    before, budget = forecast(config), budget_bytes(config)
    options = list(_options(config, before))
    changes = [_change(config, [option], before) for option in options]
    best = sorted(zip(changes, options), key=lambda pair: -pair[0].saving)
    if budget is not None and all(change.total > budget for change in changes):
        pairs = itertools.combinations([option for _, option in best[:_NUM_PAIRED]], 2)
        for first, second in pairs:
            if (both := _both(config, first, second)) is not None:
                changes.append(_change(both, [first, second], before))
    changes = [change for change in changes if change.saving > 0]
    return sorted(changes, key=lambda change: -change.saving)


def _change(config: Config, options: Sequence[_Option], before: Forecast) -> Change:
    after = forecast(options[0].config if len(options) == 1 else config)
    return Change(
        tuple(option.override for option in options),
        after.total,
        before.total - after.total,
        "; ".join(option.alters for option in options if option.alters),
        _moved(after) - _moved(before),
    )


def _both(config: Config, first: _Option, second: _Option) -> Config | None:
    """Return ``config`` with both options; None where they set the same key."""
    keys = [option.override.partition("=")[0] for option in (first, second)]
    if keys[0] == keys[1]:
        return None
    changed: dict[str, Any] = {}
    memory = config.memory
    for key, option in sorted(zip(keys, (first, second))):  # memory= before its own options
        if key == "memory":
            memory = option.config.memory
        elif key.startswith("memory."):
            name = key.removeprefix("memory.")
            memory = dataclasses.replace(memory, **{name: getattr(option.config.memory, name)})
        else:
            changed[key] = getattr(option.config, key)
    try:
        return dataclasses.replace(config, memory=memory, **changed)
    except ConfigError:
        return None


def _options(config: Config, before: Forecast) -> Iterator[_Option]:
    """Yield the single changes that may save something, each a config that is allowed."""
    at_peak, worth = before.peak.by_category(), _WORTH_TRYING_FRAC * before.total
    for strategy in STRATEGIES.values():
        if strategy is not type(config.memory):
            memory = _with_options_of(config.memory, strategy)
            yield from _allowed(
                config, f"memory={strategy.name}", _alters(config, memory), memory=memory
            )
    if at_peak[Category.activations] > worth:
        yield from _fewer_activations(config)
    if at_peak[Category.rollout] > worth and config.memory.rollout_place is Place.device:
        memory = dataclasses.replace(config.memory, rollout_place=Place.host)
        yield from _allowed(config, "memory.rollout_place=host", "", memory=memory)
    if (smaller := _smaller_network(config)) is not None:
        name, network = smaller
        yield from _allowed(config, f"network={name}", "another network", network=network)


def _fewer_activations(config: Config) -> Iterator[_Option]:
    if config.dtype is Dtype.float32:
        alters = "arithmetic of 8 bits of significand"
        yield from _allowed(config, "dtype=bfloat16", alters, dtype=Dtype.bfloat16)
    if not config.memory.checkpoint_activations:
        memory = dataclasses.replace(config.memory, checkpoint_activations=True)
        override = "memory.checkpoint_activations=true"
        yield from _allowed(config, override, "a third more arithmetic", memory=memory)
    for count in _MICRO_BATCHES:
        if count > config.memory.num_micro_batches:
            memory = dataclasses.replace(config.memory, num_micro_batches=count)
            override = f"memory.num_micro_batches={count}"
            yield from _allowed(config, override, "", memory=memory)


def _allowed(config: Config, override: str, alters: str, **changed: Any) -> Iterator[_Option]:  # noqa: ANN401
    try:
        yield _Option(dataclasses.replace(config, **changed), override, alters)
    except ConfigError:
        return  # such as a trunk that cannot be clipped separately


def _with_options_of(memory: MemoryStrategy, strategy: type[MemoryStrategy]) -> MemoryStrategy:
    """Return ``strategy`` with the options of ``memory`` that every strategy has."""
    shared = [field.name for field in dataclasses.fields(MemoryStrategy)]
    return strategy(**{name: getattr(memory, name) for name in shared})


def _alters(config: Config, memory: MemoryStrategy) -> str:
    if memory.shares_trunk != config.memory.shares_trunk:
        return "another model"
    is_separate = config.clips_separately or config.max_grad_norm is None
    if memory.always_clips_separately and not is_separate:
        return "actor and critic are clipped separately"
    return ""


def _smaller_network(config: Config) -> tuple[str, MlpConfig] | None:
    """Return the largest named network that is smaller than this one; None if there is none."""
    if not isinstance(config.network, MlpConfig):
        return None
    size = config.check_env().observation_size
    best: tuple[str, MlpConfig] | None = None
    for path in sorted((CONF_DIR / "network").glob("*.yaml")):
        named = OmegaConf.to_container(OmegaConf.load(path))
        if not (isinstance(named, dict) and "hidden" in named):
            continue
        network = dataclasses.replace(config.network, hidden=named["hidden"])
        count = network.num_trunk_parameters(size)
        if count < config.network.num_trunk_parameters(size) and (
            best is None or count > best[1].num_trunk_parameters(size)
        ):
            best = path.stem, network
    return best


def resolve_memory(config: Config) -> Config:
    """Return ``config`` with ``memory=auto`` replaced by the strategy it stands for.

    Of the strategies with the same arithmetic that fit the budget, the one that moves the fewest
    bytes over the bus in an iteration: ``co_resident`` where it fits. ``parked`` takes part only
    where clipping is separate anyway, ``shared_trunk`` never: it is another model. Where none fits,
    the one that needs least.
    """
    if not isinstance(config.memory, AutoMemory):
        return config
    candidates = list(_same_arithmetic(config))
    if fits(candidates[0]):
        return candidates[0]
    fitting = [candidate for candidate in candidates if fits(candidate)]
    if not fitting:
        return min(candidates, key=lambda candidate: forecast(candidate).total)
    return min(fitting, key=lambda candidate: _moved(forecast(candidate)))


def _same_arithmetic(config: Config) -> Iterator[Config]:
    """Yield ``config`` with each strategy that gives the same numbers, ``co_resident`` first."""
    for strategy in STRATEGIES.values():
        memory = _with_options_of(config.memory, strategy)
        if not memory.shares_trunk and not _alters(config, memory):
            yield dataclasses.replace(config, memory=memory)


def _moved(needed: Forecast) -> int:
    """Return the bytes that cross the bus in an iteration, both ways."""
    return needed.bus.iteration.h2d_bytes + needed.bus.iteration.d2h_bytes
