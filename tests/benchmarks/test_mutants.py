"""The mutation tester knows files that exist, and lines that it can change."""

from pathlib import Path

from benchmarks.mutants import TARGETS
from benchmarks.mutations import EQUIVALENT, file_of


def test_every_module_and_every_test_of_a_room_exists():
    for room, (modules, tests) in TARGETS.items():
        for path in [*(file_of(f"ppo_lab.{room}.{module}") for module in modules), *tests]:
            assert Path(path.partition("::")[0]).exists(), path


def test_every_equivalent_mutant_is_one_of_a_line_that_exists():
    texts = {
        module: Path(file_of(f"ppo_lab.{room}.{module}")).read_text().splitlines()
        for room, (modules, _) in TARGETS.items()
        for module in modules
    }
    for known in EQUIVALENT:
        assert any(known.line in line for line in texts[known.module]), known
