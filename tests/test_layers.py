"""The shape of the package: rooms that import downwards only, short files, one name per class."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import rooms
from tests.rooms import LEVEL, MODULES, PACKAGE, ROOMS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", MODULES.values(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_downwards_only(path):
    room = rooms.room_of(path)
    for other in rooms.imported_rooms(path):
        assert LEVEL[other] < LEVEL[room], f"{room} must not import {other}"


def test_no_two_rooms_import_each_other():
    arrows = {(room, other) for room, others in rooms.arrows().items() for other in others}
    assert not {(a, b) for a, b in arrows if (b, a) in arrows}


def test_the_list_of_rooms_is_the_list_of_folders():
    assert {rooms.room_of(path) for path in MODULES.values()} == set(ROOMS)


@pytest.mark.parametrize(
    ("document", "option", "expected"),
    [
        ("CONTRIBUTING.md", "", rooms.room_map),
        ("docs/architecture.md", " --picture", rooms.picture),
    ],
)
def test_the_documents_show_the_rooms_as_they_are(document, option, expected):
    text = (ROOT / document).read_text()
    assert expected() in text, f"replace it by the output of: python -m tests.rooms{option}"


def test_a_person_finds_only_commands_in_the_root_of_the_package():
    flat = sorted(path.stem for path in PACKAGE.glob("*.py"))
    assert flat == ["__init__", "__main__", "browse", "cli", "play", "report", "workspace"]


def test_no_public_class_name_is_used_twice():
    names = Counter(
        node.name
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, count in names.items() if count > 1]


def test_files_stay_short():
    long = {p.name: n for p in MODULES.values() if (n := len(p.read_text().splitlines())) > 350}
    assert not long


def test_large_libraries_wait_until_they_are_used():
    code = (
        "import sys, ppo_lab.cli; "
        "late = ('wandb', 'optuna', 'matplotlib', 'gymnasium', 'transformers'); "
        "print([m for m in late if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
