"""Save a W&B workspace that lays out this project's runs: python -m ppo_lab.workspace.

Its sections are Returns, Clip, Memory, Speed and Sweep; W&B adds what else is logged, such as the
ratio's histogram and system metrics. Needs the extra workspace; each call saves a new view.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ppo_lab.tracking.config import TrackingConfig
from ppo_lab.tracking.wandb_service import has_key
from ppo_lab.utils.redaction import mask, printable

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Panel
    from wandb_workspaces.workspaces import Workspace

__all__ = ["build", "describe", "main"]

PARAMS = ("epsilon", "lr", "network.name", "memory.strategy", "num_parameters.total")
SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "Returns": {
        "return, last 100 episodes": ("charts/episodic_return_last100",),
        "return of this iteration's episodes": ("charts/episodic_return",),
        "episode length": ("charts/episodic_length",),
        "return of the evaluated policy": ("eval/return",),
    },
    "Clip": {
        "clipped, above and below": ("ppo/clip_above_frac", "ppo/clip_below_frac"),
        "outside [0.8, 1.2]": ("ppo/outside_0p2_frac",),
        "KL of the update (k3, nats)": ("ppo/kl_k3",),
        "ratio: 1 %, 99 %, largest": ("ppo/ratio_p01", "ppo/ratio_p99", "ppo/ratio_max"),
        "entropy, share of its maximum": ("ppo/entropy_frac",),
        "epsilon": ("ppo/epsilon",),
    },
    "Memory": {
        "peak (GiB)": ("memory/peak_allocated_gib", "memory/peak_reserved_gib"),
        "peak by phase (GiB)": ("memory/peak_rollout_gib", "memory/peak_update_gib"),
        "over PCIe (bytes per iteration)": ("pcie/h2d_bytes", "pcie/d2h_bytes"),
    },
    "Speed": {
        "environment steps per second": ("charts/SPS",),
        "of rollout and update alone": ("perf/SPS_rollout", "perf/SPS_update"),
        "time of an iteration (s)": ("time/rollout_s", "time/update_s", "time/record_s"),
    },
}
"""Metrics in each line plot of each section but Sweep."""
_LOGARITHMIC = ("ppo/kl_k3", "ppo/ratio_p01")  # plots that begin with these
_GOAL, _STEPS = "final_return", "global_step"


def build(entity: str, project: str, name: str, params: Sequence[str] = PARAMS) -> Workspace:
    """Return a workspace whose ``save()`` uploads it; needs neither a network nor a key.

    The section Sweep compares ``params``, dotted keys of the config.
    """
    from wandb_workspaces import workspaces as ws

    sections = [
        ws.Section(name=name, panels=_line_plots(plots), is_open=True)
        for name, plots in SECTIONS.items()
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


def _line_plots(plots: Mapping[str, Sequence[str]]) -> list[Panel]:
    from wandb_workspaces.reports import v2 as wr

    return [
        wr.LinePlot(title=title, x=_STEPS, y=[*ys], log_y=ys[0] in _LOGARITHMIC)
        for title, ys in plots.items()
    ]


def _sweep_panels(params: Sequence[str]) -> list[Panel]:
    from wandb_workspaces.reports import v2 as wr

    goal, peak = map(wr.SummaryMetric, (_GOAL, "memory/peak_reserved_gib"))
    axes = [
        wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in (*map(wr.Config, params), goal)
    ]
    return [
        wr.ParallelCoordinatesPlot(title=", ".join([*params, _GOAL]), columns=axes),
        wr.ParameterImportancePlot(with_respect_to=_GOAL),
        wr.ScatterPlot(title=f"{_GOAL} by {params[0]}", x=wr.Config(params[0]), y=goal),
        wr.ScatterPlot(title=f"{_GOAL} by peak memory (GiB)", x=peak, y=goal),
        wr.RunComparer(diff_only="split"),
    ]


def describe(workspace: Workspace) -> Iterator[str]:
    """Yield a line for each section and each of its panels."""
    yield f"workspace {workspace.name!r} of {workspace.entity}/{workspace.project}"
    for section in workspace.sections:
        yield section.name
        for panel in section.panels:
            kind = type(panel).__name__
            metrics = "  ".join(panel.y) if kind == "LinePlot" else ""
            yield f"  {kind:<24}{getattr(panel, 'title', ''):<38}{metrics}".rstrip()


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
