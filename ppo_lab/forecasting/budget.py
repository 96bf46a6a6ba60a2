"""Whether a run fits the memory budget, and which changes would make it fit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from omegaconf import OmegaConf

from ppo_lab.config.run import Config, Dtype
from ppo_lab.devices.placement import Place
from ppo_lab.forecasting.categories import Category
from ppo_lab.forecasting.forecast import Forecast, cuda_context, forecast, try_forecast
from ppo_lab.memory import STRATEGIES, AutoMemory, MemoryStrategy, Parked
from ppo_lab.networks import NETWORKS, NetworkConfig
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.paths import CONF_DIR

__all__ = [
    "Change",
    "Excess",
    "advice",
    "budget_bytes",
    "named_networks",
    "over_budget",
    "resolve_memory",
]

_GIB = 1024**3
_MICRO_BATCHES = (2, 8)
_WORTH_TRYING_FRAC = 0.05  # of the memory needed
_NUM_PAIRED = 4  # the best single changes, which are tried in pairs
_NUM_SHOWN = 5
_NOTICEABLE_BYTES = 10 * 1024**2  # over the bus: less than a millisecond


@dataclass(frozen=True)
class Change:
    """A change of settings and the memory it would need."""

    overrides: tuple[str, ...]
    """As on the command line."""
    total: int
    """Bytes on the device."""
    alters: str
    """What it changes in the numbers of a run; empty where they stay the same."""
    more_moved: int = 0
    """Bytes more over the bus in each iteration."""
    config: Config | None = field(default=None, repr=False, compare=False)
    """With the change."""

    @property
    def price(self) -> str:
        """Changes in the numbers and on the bus; empty for none."""
        gib = self.more_moved / _GIB
        moved = f"{gib:+,.{1 if abs(gib) >= 0.1 else 2}f} GiB PCIe"  # at least 0.01
        parts = [self.alters, moved if abs(self.more_moved) > _NOTICEABLE_BYTES else ""]
        return "; ".join(part for part in parts if part)

    def __str__(self) -> str:
        price = f" ({self.price})" if self.price else ""
        return f"{' '.join(self.overrides)}: {self.total / _GIB:.2f} GiB{price}"


@dataclass(frozen=True)
class Excess:
    """A forecast above the budget; ``str`` gives the reason and the mildest remedy in one line."""

    config: Config
    needed: int
    """Bytes on the device, CUDA's own included."""
    budget: int
    """Bytes."""

    @cached_property
    def changes(self) -> list[Change]:
        """See ``advice``; takes seconds the first time."""
        return advice(self.config)

    def __str__(self) -> str:
        mildest = min(self._fitting, key=lambda change: bool(change.alters), default=None)
        remedy = f"fits with {mildest}" if mildest else "no change tried would fit"
        return f"{self._reason}; {remedy}"

    def message(self) -> str:
        """Return the reason and the changes that save most, one a line."""
        changes = (self._fitting or self.changes)[:_NUM_SHOWN]
        heading = "would fit" if self._fitting else "nothing fits"
        lines = [f"ppo_lab: {self._reason}", f"{heading}, most saved first:"]
        lines += [f"  {change}" for change in changes]
        return "\n".join([*lines, "vram_budget_gib=none runs it all the same"])

    @property
    def _reason(self) -> str:
        needed, budget = self.needed / _GIB, self.budget / _GIB
        return f"needs {needed:.2f} GiB by forecast, vram_budget_gib is {budget:.2f}"

    @property
    def _fitting(self) -> list[Change]:
        return [change for change in self.changes if change.total <= self.budget]


def budget_bytes(config: Config) -> int | None:
    """Return the bytes that a run may use on its device, CUDA's own included; None for no limit.

    ``vram_budget_gib=auto`` is what is free on the GPU.
    """
    if config.vram_budget_gib not in (None, "auto"):
        return int(config.vram_budget_gib * _GIB)
    is_auto = config.vram_budget_gib == "auto" and torch.cuda.is_available()
    if not is_auto or config.torch_device.type != "cuda":
        return None
    device = config.torch_device
    # This process can reuse what its allocator has cached, and already has a CUDA context.
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if config.vram_limit_gib is not None:
        free = min(free, int(config.vram_limit_gib * _GIB))
    return free + cuda_context(device).num_bytes


def over_budget(config: Config) -> Excess | None:
    """Return by how much a run's forecast exceeds its budget.

    None if the run fits, has no budget (then nothing is forecast), or cannot be forecast.
    """
    if (budget := budget_bytes(config)) is None or (planned := try_forecast(config)) is None:
        return None
    return Excess(config, planned.total, budget) if planned.total > budget else None


class _Option(NamedTuple):
    """Another value of one key."""

    override: str
    value: Any
    alters: str = ""

    @property
    def key(self) -> str:
        return self.override.partition("=")[0]

    def apply(self, config: Config) -> Config:
        owner, _, name = self.key.rpartition(".")
        if owner:
            memory = dataclasses.replace(config.memory, **{name: self.value})
            return dataclasses.replace(config, memory=memory)
        return dataclasses.replace(config, **{name: self.value})


def advice(config: Config) -> list[Change]:
    """Return changes that need less memory, forecast each, the one that saves most first.

    Pairs of the best are tried where no single change fits the budget. A change that cannot save
    5 % is not tried: smaller activations, for instance, where they are no more than that.
    """
    before, budget = forecast(config), budget_bytes(config)
    tried = [(option, _try(config, before, option)) for option in _options(config, before)]
    singles = [(change, option) for option, change in tried if change]
    changes = [change for change, _ in singles]
    if budget is not None and all(change.total > budget for change in changes):
        best = sorted(singles, key=lambda single: single[0].total)[:_NUM_PAIRED]
        for (_, first), (_, second) in itertools.combinations(best, 2):
            if first.key != second.key and (change := _try(config, before, first, second)):
                changes.append(change)
    smaller = [change for change in changes if change.total < before.total]
    return sorted(smaller, key=lambda change: change.total)


def _try(config: Config, before: Forecast, *options: _Option) -> Change | None:
    """Return the change as forecast; None where the options are refused."""
    try:
        for option in sorted(options, key=lambda option: option.key):  # memory= before memory.x=
            config = option.apply(config)
        config.check_env()
    except ConfigError:
        return None  # such as a trunk that cannot be clipped separately
    after = forecast(config)
    return Change(
        tuple(option.override for option in options),
        after.total,
        "; ".join(option.alters for option in options if option.alters),
        after.bus.iteration.total - before.bus.iteration.total,
        config,
    )


def _options(config: Config, before: Forecast) -> Iterator[_Option]:
    """Yield the single changes that may save something."""
    memory = config.memory
    at_peak, worth = before.peak.by_category(), _WORTH_TRYING_FRAC * before.total
    for name, strategy in STRATEGIES.items():
        if strategy is not type(memory):
            other = _as_strategy(memory, strategy)
            yield _Option(f"memory={name}", other, _alters(config, strategy))
    if not (memory.offload_fraction or isinstance(memory, Parked)):
        yield _Option("memory.offload_fraction=0.5", 0.5)
    if at_peak[Category.gradients] > worth and not memory.optimizer_in_backward:
        price = "a second backward pass" if config.max_grad_norm is not None else ""
        yield _Option("memory.optimizer_in_backward=true", True, price)
    if at_peak[Category.activations] > worth:
        if config.dtype is Dtype.float32:
            alters = "arithmetic of 8 bits of significand"
            yield _Option("dtype=bfloat16", Dtype.bfloat16, alters)
        if not memory.checkpoint_activations:
            yield _Option("memory.checkpoint_activations=true", True, "a third more arithmetic")
        if not memory.offload_activations:
            yield _Option("memory.offload_activations=true", True)
        for count in _MICRO_BATCHES:
            if count > memory.num_micro_batches:
                yield _Option(f"memory.num_micro_batches={count}", count)
    if at_peak[Category.rollout] > worth and memory.rollout_place is Place.device:
        yield _Option("memory.rollout_place=host", Place.host)
    if (smaller := _smaller_network(config)) is not None:
        name, network = smaller
        yield _Option(f"network={name}", network, "another network")


def _as_strategy(memory: MemoryStrategy, strategy: type[MemoryStrategy]) -> MemoryStrategy:
    """Return ``strategy`` with the options of ``memory`` that every strategy has and that are set.

    Defaults are the strategy's own.
    """
    values = {f.name: getattr(memory, f.name) for f in dataclasses.fields(MemoryStrategy)}
    return strategy(**{k: v for k, v in values.items() if v != getattr(type(memory), k)})


def _alters(config: Config, strategy: type[MemoryStrategy]) -> str:
    """Return what ``strategy`` changes in the numbers of a run; empty for nothing."""
    if strategy.has_critic is not config.memory.has_critic:
        return "another objective"
    if strategy.shares_trunk != config.memory.shares_trunk:
        return "another model"
    is_separate = config.separate_grad_clip or strategy.always_clips_separately
    if config.max_grad_norm is None or is_separate == config.clips_separately:
        return ""
    return f"actor and critic are clipped {'separately' if is_separate else 'together'}"


def _smaller_network(config: Config) -> tuple[str, NetworkConfig] | None:
    """Return the largest named network of this kind that is smaller; None if there is none."""
    limit = config.network.num_trunk_parameters(config.check_env())
    smaller = [named for named in named_networks(config) if named[0] < limit]
    return smaller[-1][1:] if smaller else None


def named_networks(config: Config) -> list[tuple[int, str, NetworkConfig]]:
    """Return trunk parameters, name and config of each named network of this kind, by size."""
    if config.network.is_pretrained:
        return []  # a checkpoint has the size that it has
    spec = config.check_env()
    named = [
        (network.num_trunk_parameters(spec), path.stem, network)
        for path in sorted((CONF_DIR / "network").glob("*.yaml"))
        if (network := _named_network(path, config.network)) is not None
    ]
    return sorted(named, key=lambda entry: entry[0])


def _named_network(path: Path, network: NetworkConfig) -> NetworkConfig | None:
    """Return ``network`` with the values of a YAML file; None if that is for another kind."""
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    kind = values.pop("defaults")[0].removeprefix("schema/").removesuffix("@_here_")
    if NETWORKS[kind] is not type(network):
        return None
    named = OmegaConf.merge(OmegaConf.structured(network), values)
    return cast(NetworkConfig, OmegaConf.to_object(named))


def resolve_memory(config: Config) -> Config:
    """Return ``config`` with a strategy for ``memory=auto``; itself if it has one.

    Of the strategies that give the same numbers and fit the budget, the one that moves the fewest
    bytes over the bus in an iteration: ``co_resident`` where it fits. ``parked`` is considered only
    where actor and critic are clipped separately anyway, ``shared_trunk`` and ``critic_free``
    never: they are another model and another objective. Where none fits, the one that needs least.
    """
    if not isinstance(config.memory, AutoMemory):
        return config
    candidates = [
        dataclasses.replace(config, memory=_as_strategy(config.memory, strategy))
        for strategy in STRATEGIES.values()
        if not strategy.shares_trunk and not _alters(config, strategy)
    ]
    if over_budget(candidates[0]) is None:  # co_resident, which moves nothing
        return candidates[0]
    if fitting := [candidate for candidate in candidates if over_budget(candidate) is None]:
        return min(fitting, key=lambda candidate: forecast(candidate).bus.iteration.total)
    return min(candidates, key=lambda candidate: forecast(candidate).total)
