"""A forecast as a person reads it, and as a program does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppo_lab.config.compose import Job
from ppo_lab.config.run import Config
from ppo_lab.devices.placement import Traffic
from ppo_lab.forecast.budget import Change, advice, budget_bytes
from ppo_lab.forecast.categories import Category, MemoryKey
from ppo_lab.forecast.closed_form import footprint
from ppo_lab.forecast.forecast import Forecast, forecast
from ppo_lab.networks import MlpConfig

__all__ = ["forecast_json", "forecast_table", "forecasts_table"]

_NETWORKS = ("actor", "critic", "trunk", None)
_GRID_CATEGORIES = {
    Category.weights: "weights",
    Category.gradients: "grads",
    Category.optimizer: "Adam",
    Category.activations: "activ.",
    Category.rollout: "rollout",
}
_NUM_CHANGES = 5
_SHOWN_FRAC = 0.005  # of the sum: what a term of the formula must be to get a line


def forecast_table(config: Config) -> RenderableType:
    """Return what one configuration needs: device, host, bus, and how it compares with a budget."""
    needed = forecast(config)
    title = f"{config.env.id}, {config.memory.name}, {_parameters(needed)}, {config.dtype.value}"
    parts: list[RenderableType] = [Text(title, "bold")]
    blocks = [_categories(needed), _totals(needed), _traffic(needed), *_formula(config, needed)]
    for block in blocks:
        parts += [block, Text()]
    return Group(*parts, *_verdict(config, needed))


def forecasts_table(jobs: Sequence[tuple[Job, Config]]) -> RenderableType:
    """Return one line for each job of a grid: what varies, and what it needs, in one unit."""
    overrides = [_chosen(job) for job, _ in jobs]
    varying = [
        key for key in _keys(overrides) if len({chosen.get(key) for chosen in overrides}) > 1
    ]
    unit, divisor = _common_unit([forecast(config).total for _, config in jobs])
    table = _table(gap=1)
    table.add_column("#", justify="right")
    table.add_column(Text(" ".join(varying)), overflow="fold")  # breaks between words first
    for heading in ("total", *_GRID_CATEGORIES.values(), "host", "PCIe"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, ((_, config), chosen) in enumerate(zip(jobs, overrides)):
        needed, budget = forecast(config), budget_bytes(config)
        by_category, moved = needed.peak.by_category(), needed.bus.iteration
        is_over = budget is not None and needed.total > budget
        sizes = [by_category[category] for category in _GRID_CATEGORIES]
        sizes += [needed.host_peak.total, moved.h2d_bytes + moved.d2h_bytes]
        table.add_row(
            str(number),
            Text(" ".join(chosen.get(key, "-") for key in varying)),
            Text(_rounded(needed.total / divisor), "red" if is_over else "bold"),
            *(_rounded(size / divisor) for size in sizes),
        )
    note = f"{unit}; total with CUDA's own, the rest at the tensors' peak; PCIe per iteration"
    return Group(table, Text(note, "dim"))


def forecast_json(jobs: Sequence[tuple[Job, Config]]) -> str:
    """Return one object for one job, a list for several; every size is in bytes."""
    described = [_described(job, config) for job, config in jobs]
    is_one = len(described) == 1 and not jobs[0][0].is_multirun
    return json.dumps(described[0] if is_one else described, indent=2)


def _described(job: Job, config: Config) -> dict[str, Any]:
    needed, budget = forecast(config), budget_bytes(config)
    changes = advice(config) if budget is not None and needed.total > budget else []
    form = None
    if isinstance(config.network, MlpConfig):
        closed = footprint(config, config.check_env())
        terms = [
            {"category": t.category.value, "name": t.name, "bytes": t.num_bytes, "is": t.formula}
            for t in closed.peak.terms
        ]
        form = {"total": closed.total, "moment": closed.peak.name, "terms": terms}
    return {
        "overrides": list(job.overrides),
        "memory": config.memory.name,
        "total": needed.total,
        "allocated": needed.allocated,
        "budget": budget,
        "device": {
            "peak": needed.peak.total,
            "phase": needed.peak.phase,
            "doing": needed.peak.doing,
            "categories": {c.value: size for c, size in needed.peak.by_category().items()},
            "shares": [
                {"category": share.category.value, "network": share.network, "bytes": size}
                for share, size in needed.peak.shares.items()
            ],
            "phases": {name: peak.total for name, peak in needed.phase_peaks.items()},
        },
        "beside": [
            {"name": line.name, "bytes": line.num_bytes, "source": line.source}
            for line in (needed.workspace, needed.context)
        ],
        "host": needed.host_peak._asdict(),
        "bus": {
            "startup": vars(needed.bus.startup),
            "gradient_step": vars(needed.bus.gradient_step),
            "iteration": vars(needed.bus.iteration),
        },
        "num_parameters": needed.num_parameters,
        "formula": form,
        "advice": [
            {
                "overrides": list(c.overrides),
                "total": c.total,
                "alters": c.alters or None,
                "more_moved": c.more_moved,
            }
            for c in changes
        ],
    }


def _categories(needed: Forecast) -> Table:
    """Return categories by networks at the peak."""
    shares = needed.peak.shares
    networks = [n for n in _NETWORKS if any(share.network == n for share in shares)]
    table = _table()
    table.add_column(Text("at the peak", "dim"))
    for network in networks:
        table.add_column(network or "both or none", justify="right")
    table.add_column("sum", justify="right")
    for category, size in needed.peak.by_category().items():
        if size:
            sizes = [shares.get(MemoryKey(category, network), 0) for network in networks]
            cells = [_size(part) if part else "" for part in sizes]
            table.add_row(category.value, *cells, _size(size))
    return table


def _totals(needed: Forecast) -> Table:
    """Return the sum line by line, down to what the card must have."""
    table = _table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    peak, host = needed.peak, needed.host_peak
    table.add_row("tensors at the peak", _size(peak.total), f"{peak.phase}: {peak.doing}")
    for line in (needed.workspace, needed.context):
        table.add_row(line.name, _size(line.num_bytes), line.source)
    table.add_row(Text("the card needs", "bold"), Text(_size(needed.total), "bold"), "")
    table.add_row("allocator's reserve", "-", "not forecast; it gives back where memory is short")
    for name, other in needed.phase_peaks.items():
        if name != peak.phase:
            table.add_row(f"  peak of {name}", _size(other.total), "")
    table.add_row("host, page-locked", _size(host.pinned), "blocks of powers of two")
    table.add_row("host, other tensors", _size(host.pageable), "")
    return table


def _traffic(needed: Forecast) -> Table:
    """Return what crosses the bus."""
    table = _table()
    table.add_column(Text("over PCIe", "dim"))
    table.add_column("to the device", justify="right")
    table.add_column("to the host", justify="right")
    rows: tuple[tuple[str, Traffic], ...] = (
        ("each gradient step", needed.bus.gradient_step),
        ("each iteration", needed.bus.iteration),
    )
    for name, moved in rows:
        table.add_row(name, _size(moved.h2d_bytes), _size(moved.d2h_bytes))
    return table


def _formula(config: Config, needed: Forecast) -> list[RenderableType]:
    """Return the closed form of the peak, as far as its terms matter; none for other networks."""
    if not isinstance(config.network, MlpConfig):
        return []
    form = footprint(config, config.check_env())
    table = _table()
    table.add_column(Text("by formula", "dim"))
    table.add_column("", justify="right")
    table.add_column(Text(form.peak.name, "dim"), overflow="fold")
    rest = form.total
    for term in form.peak.terms:
        if term.num_bytes >= _SHOWN_FRAC * form.total:
            table.add_row(term.name, _size(term.num_bytes), term.formula)
            rest -= term.num_bytes
    if rest:
        table.add_row("smaller terms", _size(rest), "")
    error = form.total / needed.peak.total - 1.0
    table.add_row("sum", _size(form.total), f"{error:+.1%} of the tensors counted; {form.summary}")
    return [table]


def _verdict(config: Config, needed: Forecast) -> list[RenderableType]:
    """Return whether it fits the budget, and what would; nothing where there is no budget."""
    budget = budget_bytes(config)
    if budget is None:
        return []
    if needed.total <= budget:
        return [Text(f"fits: {_size(budget - needed.total)} of {_size(budget)} remain", "green")]
    over = f"over the budget of {_size(budget)} by {_size(needed.total - budget)}"
    return [Text(over, "red"), _changes(advice(config), budget)]


def _changes(changes: Sequence[Change], budget: int) -> Table:
    table = _table()
    table.add_column(Text("instead", "dim"), overflow="fold", min_width=26)
    for heading in ("needs", "saves"):
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("changes, PCIe per iteration")
    for change in changes[:_NUM_CHANGES]:
        verdict = Text("fits", "green") if change.total <= budget else Text("over", "red")
        name = " ".join(change.overrides)
        sizes = (_size(change.total), _size(change.saving))
        table.add_row(Text(name), *sizes, verdict, Text(change.price or "nothing"))
    return table


def _table(*, show_header: bool = True, gap: int = 2) -> Table:
    return Table(
        box=box.SIMPLE_HEAD if show_header else None,
        show_header=show_header,
        show_edge=False,
        pad_edge=False,
        padding=(0, gap, 0, 0),
    )


def _common_unit(sizes: Sequence[int]) -> tuple[str, int]:
    return ("GiB", 1024**3) if max(sizes) >= 1024**3 else ("MiB", 1024**2)


def _rounded(size: float) -> str:
    """Return no more digits than matter: 0.05, 1.25, 12.5, 1,250."""
    return f"{size:,.{2 if size < 10.0 else 1 if size < 100.0 else 0}f}" if size else "0"


def _size(num_bytes: int) -> str:
    """Return bytes with three significant digits, in a unit that suits them."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1000.0:
            return f"{size:.3g} {unit}"
        size /= 1024.0
    return f"{size:,.2f} GiB"


def _parameters(needed: Forecast) -> str:
    parts = [f"{name} {_count(number)}" for name, number in needed.num_parameters.items()]
    return " + ".join(parts)


def _count(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _chosen(job: Job) -> dict[str, str]:
    pairs = (override.lstrip("+").partition("=") for override in job.overrides)
    return {key: value for key, _, value in pairs}


def _keys(overrides: Sequence[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(key for chosen in overrides for key in chosen))
