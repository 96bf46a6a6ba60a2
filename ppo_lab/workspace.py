"""Save a W&B workspace that lays out this project's runs: python -m ppo_lab.workspace.

Its sections are Returns, Clip, Memory, Speed and Sweep; W&B adds what else is logged, such as the
ratio's histogram and system metrics. Needs the extra workspace; each call saves a new view.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ppo_lab.tracking.config import TrackingConfig
from ppo_lab.tracking.wandb_service import has_key
from ppo_lab.utils.redaction import mask, printable

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Panel
    from wandb_workspaces.workspaces import Workspace

__all__ = ["build", "describe", "main"]

PARAMS = ("epsilon", "lr", "network.name", "memory.strategy", "num_parameters.total")
_GOAL = "final_return"  # in the summary of every run
_STEPS = "global_step"


class _Lines(NamedTuple):
    """Metrics in one line plot over environment steps."""

    title: str
    metrics: tuple[str, ...]
    is_log: bool = False
    is_stacked: bool = False


SECTIONS = {
    "Returns": [
        _Lines("return, last 100 episodes", ("charts/episodic_return_last100",)),
        _Lines("return of this iteration's episodes", ("charts/episodic_return",)),
        _Lines("episode length", ("charts/episodic_length",)),
    ],
    "Clip": [
        _Lines("clipped, above and below", ("ppo/clip_above_frac", "ppo/clip_below_frac")),
        _Lines("outside [0.8, 1.2]", ("ppo/outside_0p2_frac",)),
        _Lines("KL of the update (k3, nats)", ("ppo/kl_k3",), is_log=True),
        _Lines(
            "ratio: 1 %, 99 %, largest",
            ("ppo/ratio_p01", "ppo/ratio_p99", "ppo/ratio_max"),
            is_log=True,
        ),
        _Lines("entropy, share of its maximum", ("ppo/entropy_frac",)),
        _Lines("epsilon", ("ppo/epsilon",)),
    ],
    "Memory": [
        _Lines(
            "peak of the device (GiB)", ("memory/peak_allocated_gib", "memory/peak_reserved_gib")
        ),
        _Lines(
            "peak by phase (GiB)",
            ("memory/peak_rollout_gib", "memory/peak_advantages_gib", "memory/peak_update_gib"),
        ),
        _Lines("over PCIe (bytes per iteration)", ("pcie/h2d_bytes", "pcie/d2h_bytes")),
    ],
    "Speed": [
        _Lines("environment steps per second", ("charts/SPS",)),
        _Lines("of rollout and update alone", ("perf/SPS_rollout", "perf/SPS_update")),
        _Lines(
            "time of an iteration (s)",
            ("time/rollout_s", "time/advantages_s", "time/update_s", "time/record_s"),
            is_stacked=True,
        ),
    ],
}


def build(entity: str, project: str, name: str, params: Sequence[str] = PARAMS) -> Workspace:
    """Return the workspace; needs neither a network nor a key.

    Args:
        entity: W&B user or team.
        project: W&B project of the runs.
        name: Name of the view.
        params: Dotted keys of the config that the section Sweep compares.

    Returns:
        A workspace whose ``save()`` uploads it.
    """
    from wandb_workspaces import workspaces as ws

    sections = [
        ws.Section(name=title, panels=[_line_plot(lines) for lines in group], is_open=True)
        for title, group in SECTIONS.items()
    ]
    sections.append(ws.Section(name="Sweep", panels=_sweep_panels(params), is_open=True))
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=_STEPS, max_runs=100),
        auto_generate_panels=True,
    )


def _line_plot(lines: _Lines) -> Panel:
    from wandb_workspaces.reports import v2 as wr

    return wr.LinePlot(
        title=lines.title,
        x=_STEPS,
        y=[*lines.metrics],
        log_y=lines.is_log or None,
        plot_type="stacked-area" if lines.is_stacked else None,
    )


def _sweep_panels(params: Sequence[str]) -> list[Panel]:
    from wandb_workspaces.reports import v2 as wr

    goal = wr.SummaryMetric(_GOAL)
    axes = [*map(wr.Config, params), goal]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes]
    return [
        wr.ParallelCoordinatesPlot(title="parallel coordinates", columns=columns),
        wr.ParameterImportancePlot(with_respect_to=_GOAL),
        *(wr.ScatterPlot(title=f"{_GOAL} by {p}", x=wr.Config(p), y=goal) for p in params[:1]),
        wr.ScatterPlot(
            title=f"{_GOAL} by peak memory (GiB)",
            x=wr.SummaryMetric("memory/peak_reserved_gib"),
            y=goal,
        ),
        wr.RunComparer(diff_only="split"),
    ]


def describe(workspace: Workspace) -> Iterator[str]:
    """Yield a line for each section and each of its panels."""
    yield f"workspace {workspace.name!r} of {workspace.entity}/{workspace.project}"
    for section in workspace.sections:
        yield section.name
        for panel in section.panels:
            shown = getattr(panel, "title", None) or type(panel).__name__
            metrics = getattr(panel, "y", ())  # one, or a list
            axes = [column.metric for column in getattr(panel, "columns", ())]
            axes += metrics if isinstance(metrics, list) else []
            yield f"  {shown:<38}{'  '.join(getattr(axis, 'name', axis) for axis in axes)}".rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Save the workspace, or print it; return 2 if there is nobody to save it for."""
    parser = argparse.ArgumentParser(prog="python -m ppo_lab.workspace", description=__doc__)
    parser.add_argument("--project", default=None, help="default WANDB_PROJECT, else ppo_lab")
    parser.add_argument("--entity", default=None, help="user or team; default the account's own")
    parser.add_argument("--name", default="ppo_lab", help="of the view; default ppo_lab")
    parser.add_argument("--params", nargs="+", default=PARAMS, metavar="KEY", help="axes of Sweep")
    parser.add_argument("--dry", action="store_true", help="print it, without network or key")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("wandb_workspaces") is None:
        return _refuse("needs pip install 'ppo_lab[workspace]'")
    project = options.project or TrackingConfig().resolved_project
    if options.dry:
        shown = build(options.entity or "ENTITY", project, options.name, options.params)
        sys.stdout.writelines(f"{printable(line)}\n" for line in describe(shown))
        return 0
    for variable, value in (("WANDB_SILENT", "true"), ("WANDB_ERROR_REPORTING", "false")):
        os.environ.setdefault(variable, value)
    if not has_key(is_required=False):
        return _refuse("there is no W&B key (WANDB_API_KEY or `wandb login`); --dry prints it")
    return _save(options.entity, project, options.name, options.params)


def _save(entity: str | None, project: str, name: str, params: Sequence[str]) -> int:
    import wandb

    try:
        owner = entity or wandb.Api(timeout=20).default_entity
        if owner is None:
            return _refuse("the account has no default entity; use --entity")
        workspace = build(owner, project, name, params)
        workspace.save()
        sys.stdout.write(f"saved  {workspace.url}\n")
    except (wandb.Error, OSError, ValueError) as error:  # requests' errors are OSErrors
        _refuse(f"not saved: {mask(' '.join(str(error).split()))[:200]}")
        return 1
    return 0


def _refuse(reason: str) -> int:
    sys.stderr.write(f"ppo_lab.workspace: {reason}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
