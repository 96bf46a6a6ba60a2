"""Output of ``forecast=true``: tables for a person, JSON for a program."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from ppo_lab.config.compose import Job
from ppo_lab.config.run import Config
from ppo_lab.devices.placement import Traffic
from ppo_lab.forecasting.budget import budget_bytes, over_budget
from ppo_lab.forecasting.categories import Category, MemoryKey
from ppo_lab.forecasting.forecast import Forecast, forecast
from ppo_lab.tracking.tables import override_values, varying_keys
from ppo_lab.tracking.wide_table import TextColumn, WideTable
from ppo_lab.utils.redaction import printable

__all__ = ["forecast_json", "forecast_table", "forecasts_table"]

_BUS_GB_PER_S = 55
"""Page-locked copies over PCIe 5 x16, in each direction; a run measures its own bus."""
_NETWORKS = ("actor", "critic", "trunk", "reference", None)
_GRID_CATEGORIES = {
    Category.weights: "weights",
    Category.gradients: "grads",
    Category.optimizer: "Adam",
    Category.activations: "act.",
    Category.rollout: "rollout",
}
_SHORT = {"evaluation": "eval", "advantages": "adv.", "diagnostics": "diag."}  # phases
_OF_SEQUENCES = {Category.logits: "logits", Category.cache: "cache"}


def forecast_table(config: Config) -> RenderableType:
    """Return tables of one configuration: device, host and bus, and the comparison with its budget.

    The memory strategy of ``config`` must be resolved, here and below.
    """
    planned = forecast(config)
    counts = [
        f"{name} {_scaled(count, ('', 'k', 'M', 'B'), 1000.0)}"
        for name, count in planned.num_parameters.items()
    ]
    title = f"{config.env.id}, {config.memory.name}, {' + '.join(counts)}, {config.dtype.value}"
    cost = config.memory.cost.describe(config.weights_dtype.itemsize)
    blank = Text()
    return Group(
        Text(title, "bold"),
        *(_categories(planned), blank, _phases(planned), blank),
        *(_totals(planned), blank, _traffic(planned), blank),
        *(Text(f"each parameter takes {cost}"), blank, *_comparison(config, planned)),
    )


def forecasts_table(jobs: Sequence[tuple[Job, Config]]) -> RenderableType:
    """Return a table with a row for each job of a grid, all sizes in one unit.

    If a policy reads sequences, a second table has the peak of each phase.
    """
    most = max(forecast(config).total for _, config in jobs)
    unit, divisor = ("GiB", 1024**3) if most >= 1024**3 else ("MiB", 1024**2)
    categories = {
        category: name
        for category, name in (_GRID_CATEGORIES | _OF_SEQUENCES).items()
        if category in _GRID_CATEGORIES
        or any(forecast(config).peak.by_category()[category] for _, config in jobs)
    }
    rows: list[Sequence[str | Text]] = []
    for _, config in jobs:
        planned = forecast(config)
        by_category = planned.peak.by_category()
        sizes = [by_category[category] for category in categories]
        sizes += [planned.host_peak.total, planned.bus.iteration.total]
        is_over = over_budget(config) is not None
        total = _rounded(planned.total / divisor) + ("!" if is_over else "")
        milliseconds = _rounded(1000.0 * _bus_s(planned.bus.iteration))
        row = [Text(total, "red" if is_over else "bold")]
        rows.append([*row, *(_rounded(size / divisor) for size in sizes), milliseconds])
    table = _jobs_table(jobs, ["total", *categories.values(), "host", "PCIe", "ms"], rows)
    notes = [f"{unit}; total with CUDA's own, the rest at the tensors' peak"]
    notes.append(f"PCIe: moved in each iteration, and its time at {_BUS_GB_PER_S} GB/s each way")
    if any(str(row[0]).endswith("!") for row in rows):
        notes.append("!: exceeds vram_budget_gib")
    parts: list[RenderableType] = [table, *(Text(note, "dim") for note in notes)]
    if any(config.network.reads_sequences for _, config in jobs):
        parts += [Text(), *_phases_of_jobs(jobs, divisor)]
    return Group(*parts)


def _phases_of_jobs(jobs: Sequence[tuple[Job, Config]], divisor: int) -> list[RenderableType]:
    """Return a table of each phase's peak, and of the most that its parts take in any phase."""
    planned = [forecast(config) for _, config in jobs]
    names = list(dict.fromkeys(name for each in planned for name in each.phase_peaks))
    parts: dict[str, Category | MemoryKey] = {
        "reference": MemoryKey(Category.weights, "reference"),
        "cache": Category.cache,
        "logits": Category.logits,
    }
    rows: list[Sequence[str | Text]] = []
    for each in planned:
        peaks = each.phase_peaks
        sizes = [peaks[name].total if name in peaks else 0 for name in names]
        sizes += [max(peak.size_of(part) for peak in peaks.values()) for part in parts.values()]
        rows.append([_rounded(size / divisor) for size in sizes])
    note = "peaks by phase; then the most of these parts at the peak of any phase"
    return [
        _jobs_table(jobs, [*(_SHORT.get(name, name) for name in names), *parts], rows),
        Text(note, "dim"),
    ]


def _jobs_table(
    jobs: Sequence[tuple[Job, Config]],
    headings: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
) -> WideTable:
    """Return a table with the number of each job, the overrides that vary, and its row."""
    overrides = [override_values({"overrides": job.overrides}) for job, _ in jobs]
    varying = varying_keys(overrides)
    settings = [printable(" ".join(own.get(key, "-") for key in varying)) for own in overrides]
    columns = [
        TextColumn("#", [str(number) for number in range(len(jobs))]),
        TextColumn(printable(" ".join(varying)), settings, is_number=False),
        *(TextColumn(name, cells) for name, cells in zip(headings, zip(*rows))),
    ]
    return WideTable(columns, num_fixed=2)


def forecast_json(jobs: Sequence[tuple[Job, Config]]) -> str:
    """Return forecasts as JSON, sizes in bytes: an object for a single run, a list for a grid."""
    described = [_described(job, config) for job, config in jobs]
    return json.dumps(described if jobs[0][0].is_multirun else described[0], indent=2)


def _described(job: Job, config: Config) -> dict[str, Any]:
    planned, excess = forecast(config), over_budget(config)
    element_size = config.weights_dtype.itemsize
    return {
        "overrides": job.overrides,
        "memory": config.memory.name,
        "total": planned.total,
        "allocated": planned.allocated,
        "budget": budget_bytes(config),
        "device": {
            "peak": planned.peak.total,
            "phase": planned.peak.phase,
            "doing": planned.peak.doing,
            "categories": {c.value: size for c, size in planned.peak.by_category().items()},
            "shares": [
                {"category": key.category.value, "network": key.network, "bytes": size}
                for key, size in planned.peak.by_key.items()
            ],
            "phases": {name: peak.total for name, peak in planned.phase_peaks.items()},
            "phase_categories": {
                name: {c.value: size for c, size in peak.by_category().items()}
                for name, peak in planned.phase_peaks.items()
            },
        },
        "beside": [
            {"name": line.name, "bytes": line.num_bytes, "source": line.source}
            for line in (planned.workspace, planned.context)
        ],
        "host": planned.host_peak._asdict(),
        "bus": dataclasses.asdict(planned.bus),
        "num_parameters": planned.num_parameters,
        "per_parameter": {
            name: count * element_size for name, count in config.memory.cost._asdict().items()
        },
        "advice": [
            dataclasses.asdict(change) | {"alters": change.alters or None}
            for change in (excess.changes if excess else ())
        ],
    }


def _categories(planned: Forecast) -> Table:
    """Return the bytes by category and network at the peak."""
    by_key = planned.peak.by_key
    networks = [n for n in _NETWORKS if any(key.network == n for key in by_key)]
    table = _table("at the peak", *(network or "both or none" for network in networks), "sum")
    for category, size in planned.peak.by_category().items():
        if size:
            sizes = [by_key.get(MemoryKey(category, network), 0) for network in networks]
            table.add_row(category.value, *(_size(s) if s else "" for s in sizes), _size(size))
    return table


def _phases(planned: Forecast) -> Table:
    """Return the bytes by category at the peak of each phase."""
    peaks = {name: peak.by_category() for name, peak in planned.phase_peaks.items()}
    table = _table("at its peak", *peaks)
    for category in Category:
        sizes = [sums[category] for sums in peaks.values()]
        if any(sizes):
            table.add_row(category.value, *(_size(size) if size else "" for size in sizes))
    totals = (_size(peak.total) for peak in planned.phase_peaks.values())
    table.add_row("sum", *totals, style="bold")
    return table


def _totals(planned: Forecast) -> Table:
    """Return the parts of what the GPU must have, and the host's memory."""
    right, dim = Column(justify="right"), Column(style="dim")
    table = Table.grid(Column(), right, dim, padding=(0, 2, 0, 0))
    peak, host = planned.peak, planned.host_peak
    table.add_row("tensors at the peak", _size(peak.total), f"{peak.phase}: {peak.doing}")
    for line in (planned.workspace, planned.context):
        table.add_row(line.name, _size(line.num_bytes), line.source)
    table.add_row(Text("the card needs", "bold"), Text(_size(planned.total), "bold"), "")
    table.add_row("allocator's reserve", "-", "not forecast; released where memory is short")
    table.add_row("host, page-locked", _size(host.pinned), "blocks of powers of two")
    table.add_row("host, other tensors", _size(host.pageable), "")
    return table


def _traffic(planned: Forecast) -> Table:
    """Return the bytes that cross the bus, and the seconds that takes."""
    heading = f"at {_BUS_GB_PER_S} GB/s each way"
    table, bus = _table("over PCIe", "to the device", "to the host", heading), planned.bus
    for name, moved in (("gradient step", bus.gradient_step), ("iteration", bus.iteration)):
        sizes = _size(moved.h2d_bytes), _size(moved.d2h_bytes)
        table.add_row(f"each {name}", *sizes, f"{_bus_s(moved):.2g} s")
    return table


def _comparison(config: Config, planned: Forecast) -> list[Text]:
    """Compare with the budget; nothing where there is none."""
    if (excess := over_budget(config)) is not None:
        return [Text(excess.message(), "red")]
    if (budget := budget_bytes(config)) is not None:
        return [Text(f"fits: {_size(budget - planned.total)} of {_size(budget)} remain", "green")]
    return []


def _table(first: str, *numbers: str, gap: int = 2) -> Table:
    """Return a table of a dim first heading and right-aligned columns."""
    columns = Column(Text(first, "dim")), *(Column(name, justify="right") for name in numbers)
    padding = (0, gap, 0, 0)
    return Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)


def _bus_s(moved: Traffic) -> float:
    """Return the seconds of a transfer in both directions at the same time."""
    return max(moved.h2d_bytes, moved.d2h_bytes) / (_BUS_GB_PER_S * 1e9)


def _rounded(size: float) -> str:
    """Return no more digits than matter: 0.05, 1.25, 12.5, 1,250."""
    return f"{size:,.{2 if size < 10.0 else 1 if size < 100.0 else 0}f}" if size else "0"


def _size(num_bytes: int) -> str:
    return _scaled(num_bytes, ("B", "KiB", "MiB", "GiB"), 1024.0)


def _scaled(number: float, units: Sequence[str], step: float) -> str:
    """Return three significant digits in a suitable unit; each is ``step`` times the last."""
    for unit in units[:-1]:
        if number < 1000.0:
            return f"{number:.3g} {unit}".rstrip()
        number /= step
    return f"{number:,.2f} {units[-1]}"
