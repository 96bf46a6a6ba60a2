"""``python -m ppo_lab.workspace``: a W&B workspace, built without network and saved with a key."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from ppo_lab import workspace
from tests.helpers.commands import ppo_lab
from tests.helpers.stub_server import serve
from tests.helpers.wandb_processes import CANARY_KEY, clean_environment
from tests.test_documents import metrics_of, rows_of

pytest.importorskip("wandb_workspaces")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own


def test_every_metric_is_one_that_runs_have() -> None:
    documented = {
        name
        for cells in rows_of("| metric | meaning |")
        for alternatives in metrics_of(cells[0])
        for name in alternatives
    }
    plots = [plot for section in workspace.SECTIONS.values() for plot in section.values()]
    shown = {metric for plot in plots for metric in plot}
    assert len(shown) > 20
    assert not shown - documented


def test_without_network_or_key_it_is_printed_with_the_axes_that_were_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert workspace.main(["--dry", "--params", "gamma"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "workspace 'ppo_lab' of ENTITY/mine"
    sections = [line for line in lines[1:] if not line.startswith(" ")]
    assert sections == ["Returns", "Clip", "Memory", "Speed", "Sweep"]
    assert "  ParallelCoordinatesPlot gamma, final_return" in lines
    assert not err


def test_what_is_saved_names_metrics_and_config_as_wandb_does(tmp_path: Path) -> None:
    bodies: list[bytes] = []
    with serve("ok", bodies=bodies) as url:
        variables = {"WANDB_BASE_URL": url, "WANDB_API_KEY": CANARY_KEY}
        environment = clean_environment(tmp_path / "home", **variables)
        done = ppo_lab(tmp_path, "--project", "mine", module="ppo_lab.workspace", **environment)
    assert done.stdout == f"saved  {url}/me/mine?nw=abc\n", done.stderr
    assert done.stderr == ""
    (sent,) = [json.loads(body) for body in bodies if b"UpsertView2" in body]
    variables = sent["variables"]
    assert (variables["entityName"], variables["projectName"]) == ("me", "mine")
    section = json.loads(variables["spec"])["section"]
    panels = [p for s in section["panelBankConfig"]["sections"] for p in s["panels"]]
    kinds = {panel["viewType"] for panel in panels}
    assert {"Parallel Coordinates Plot", "Parameter Importance"} <= kinds
    lines = [p["config"] for p in panels if p["viewType"] == "Run History Line Plot"]
    assert {line["xAxis"] for line in lines} == {"global_step"}
    (coordinates,) = [p["config"] for p in panels if p["viewType"].startswith("Parallel")]
    accessors = [column["accessor"] for column in coordinates["columns"]]
    assert accessors[2:4] == ["config:network.value.name", "config:memory.value.strategy"]
    assert accessors[-1] == "summary:final_return"


def test_who_cannot_save_is_told_why_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "has_key", lambda *, is_required: False)
    assert workspace.main([]) == 2
    assert "no W&B key" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert workspace.main([]) == 2
    error = capsys.readouterr().err
    assert "pip install 'ppo_lab[workspace]'" in error
    assert error.count("\n") == 1
