"""The rooms of the package and the imports between them, computed from the source.

``python -m tests.rooms`` prints the map of CONTRIBUTING.md, with ``--picture`` the graph of
docs/architecture.md, with ``--figures`` the size of the package.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "ppo_lab"
COMMANDS = "(commands)"
ROOMS = {  # from top to bottom: a room imports only from rooms below it
    COMMANDS: "the commands: run and study, play, report, browse, workspace",
    "studies": "Optuna studies: the command, scheduling, Ctrl-C",
    "reports": "the page of runs, grids and studies: loading, figures, player",
    "studies/display": "progress of a study: live table, log lines",
    "studies/results": "statistics, confirmation, trials.csv, best.yaml, panel",
    "studies/store": "trials in Optuna's storage: retries, leases, outcomes",
    "studies/definition": "a study's plan: space, objective, sampler, pruner",
    "grids": "grids: the stacked launcher, live table, results",
    "workers": "processes that run trials",
    "runner": "a run in its folder; a stack that trains many runs",
    "forecasting": "bytes by category: dry run, ledger, budget, tables",
    "training": "the training loop, lane values, records, saved policy",
    "compiler": "an iteration as compiled programs or CUDA graphs",
    "config": "typed configuration, composed and checked",
    "memory": "memory strategies: where weights and Adam's state are",
    "ppo": "losses, advantages, rollout, collector, update, Adam",
    "networks": "actor-critics with a lane axis, action distributions",
    "envs": "native and Gymnasium environments, normalisation",
    "tracking": "metrics.jsonl, summary.json, W&B, TensorBoard, terminal",
    "devices": "placement and transfers, clocks, CUDA memory, profiler",
    "utils": "errors, atomic files, random numbers, paths",
}
LEVEL = {room: -level for level, room in enumerate(ROOMS)}
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).parts).removesuffix(".py"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
_IMPORTABLE = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    if len(parts) == 1:
        return COMMANDS
    return "/".join(parts[:2]) if parts[0] == "studies" and len(parts) > 2 else parts[0]


def imported_rooms(path: Path) -> set[str]:
    """Return the other rooms that the module at ``path`` imports from, wherever it does."""
    found = {room_of(_IMPORTABLE[name]) for name in _imported_modules(path)}
    return found - {room_of(path)}


def _imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [(alias.name,) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(f"{node.module}.{alias.name}", node.module) for alias in node.names]
        else:
            continue
        for candidates in names:  # a submodule, or a name within the module
            yield from [name for name in candidates if name in _IMPORTABLE][:1]


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Return the rooms that each room imports from."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in MODULES.values():
        found[room_of(path)] |= imported_rooms(path)
    return found


def _reachable(room: str) -> set[str]:
    return set().union(*({below} | _reachable(below) for below in arrows()[room]))


def _floor(room: str) -> int:
    """Return the length of the longest chain of imports below ``room``."""
    return max((1 + _floor(below) for below in arrows()[room]), default=0)


def room_map() -> str:
    """Return one line per room, from top to bottom."""
    width = max(map(len, ROOMS)) + 2
    return "\n".join(f"{room:{width}}{text}" for room, text in ROOMS.items())


def picture() -> str:
    """Return the rooms as a Mermaid graph, without arrows that a longer way implies."""
    lines = ["graph TD"]
    for room, others in arrows().items():
        implied = set().union(*map(_reachable, others))
        direct = sorted(others - implied, key=LEVEL.__getitem__, reverse=True)
        lines += [f"    {_node(room)} --> {_node(other)}" for other in direct]
    return "\n".join(lines)


def _node(room: str) -> str:
    name = room.strip("()")
    return f"{name.replace('/', '_')}[{name}]" if "/" in name else name


def figures() -> str:
    """Return the size of the package in numbers."""
    paths = [PACKAGE / "__init__.py", *MODULES.values()]
    num_lines = sum(len(path.read_text().splitlines()) for path in paths)
    num_modules = sum(path.name != "__init__.py" for path in paths)
    flat = len(list(PACKAGE.glob("*.py")))
    return (
        f"{num_modules} modules, {num_lines:,} lines; {flat} modules flat in the root; "
        f"{len(ROOMS)} rooms on {1 + max(map(_floor, ROOMS))} floors with "
        f"{sum(map(len, arrows().values()))} arrows"
    )


if __name__ == "__main__":
    kinds = {"--picture": picture, "--figures": figures}
    print(kinds[sys.argv[1]]() if len(sys.argv) > 1 else room_map())
