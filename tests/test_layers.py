"""Imports go down the layers only; heavy packages are imported where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ppo_lab

PACKAGE = Path(ppo_lab.__file__).parent
LAYERS = [  # a room may import from its own layer and from those above it in this list
    {
        "decompositions", "errors", "files", "library", "paths", "programs", "random", "tracing",
        "versions",
    },
    {
        "advantages", "bus", "diagnostics", "episodes", "graphs", "ledger", "meters",
        "normalization", "observations", "optimizer", "outcome", "placement", "ppo", "rollout",
        "step_log", "tally", "trace", "vram",
    },
    {"envs", "networks"},
    {"memory", "tracking"},
    {"collect", "update"},
    {"after_update"},
    {"compiled", "compiled_update"},
    {
        "choices", "config", "study_config", "lanes", "policy", "compose", "refusals", "records",
        "variants",
    },
    {"compilation", "precision"},
    {"trainer"},
    {"counted"},
    {"dry_run", "forecast", "budget", "forecast_view"},
    {"memory_summary"},
    {"lane_run"},
    {"entry"},
    {"stack"},
    {"run"},
    {"sweep"},
    {"__main__", "browse", "cli", "grid", "play", "report"},
]  # fmt: skip
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "ppo_lab":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ppo_lab."):
            rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            rooms |= {name.split(".")[1] for name in names if name.startswith("ppo_lab.")}
    return rooms


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_downwards_only(path):
    room = room_of(path)
    for other in imported_rooms(path) - {room}:
        assert LEVEL[other] <= LEVEL[room], f"{room} must not import {other}"


def test_no_two_rooms_import_each_other():
    arrows = {(room_of(path), other) for path in MODULES for other in imported_rooms(path)}
    both_ways = {(a, b) for a, b in arrows if a != b and (b, a) in arrows}
    assert not both_ways


def test_wandb_optuna_matplotlib_and_gymnasium_wait_until_they_are_used():
    code = (
        "import sys, ppo_lab.cli; "
        "print([m for m in ('wandb', 'optuna', 'matplotlib', 'gymnasium') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_stay_short():
    long = {p.name: n for p in MODULES if (n := len(p.read_text().splitlines())) > 350}
    assert not long
