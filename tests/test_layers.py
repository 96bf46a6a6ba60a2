"""Imports go down the layers only; heavy packages are imported where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ppo_lab

PACKAGE = Path(ppo_lab.__file__).parent
LAYERS = [  # a room may import from those below it in this list
    "(commands)",
    "studies",
    "studies/display",
    "studies/results",
    "studies/store",
    "studies/definition",
    "grids",
    "workers",
    "runner",
    "forecast",
    "training",
    "compiler",
    "config",
    "memory",
    "ppo",
    "networks",
    "envs",
    "tracking",
    "devices",
    "utils",
]
LEVEL = {room: -level for level, room in enumerate(LAYERS)}
MODULES = {
    "ppo_lab." + ".".join(path.relative_to(PACKAGE).parts).removesuffix(".py"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
PACKAGES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    if len(parts) == 1:
        return "(commands)"
    return "/".join(parts[:2]) if parts[0] == "studies" and len(parts) > 2 else parts[0]


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ppo_lab"):
            for alias in node.names:
                names = (f"{node.module}.{alias.name}", node.module)
                found = [PACKAGES[name] for name in names if name in PACKAGES]
                rooms |= {room_of(path) for path in found[:1]}
    return rooms


@pytest.mark.parametrize("path", MODULES.values(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_downwards_only(path):
    room = room_of(path)
    for other in imported_rooms(path) - {room}:
        assert LEVEL[other] < LEVEL[room], f"{room} must not import {other}"


def test_no_two_rooms_import_each_other():
    arrows = {(room_of(path), other) for path in MODULES.values() for other in imported_rooms(path)}
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
    long = {p.name: n for p in MODULES.values() if (n := len(p.read_text().splitlines())) > 350}
    assert not long
