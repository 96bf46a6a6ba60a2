"""``python -m benchmarks.wrong_commands [--write]``: what it costs to be refused.

Each command of the corpus in tests/config is refused in a process forked from one that has imported
the command, since the import would take most of the time; it is measured apart.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.result_page import publish, table
from benchmarks.resumable import in_child
from ppo_lab import cli
from tests.config import wrong_configs as corpus

_MOST_S = 2.0
"""Processor time that a refusal may take, with the import."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="save the page in benchmarks/results")
    arguments = parser.parse_args()
    search = "study=default epsilon=interval(0.1,0.3)"
    commands = [
        *(line for line, *_ in [*corpus.REFUSED, *corpus.REFUSED_COMMANDS]),
        *(f"{line} -m" for line, *_ in corpus.REFUSED_GRIDS),
        *(f"{search} {line}" for line, *_ in corpus.REFUSED_STUDIES),
    ]
    costs, wrong, typed = [], [], sys.argv
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for line in commands:
            sys.argv = ["ppo_lab", *shlex.split(line)]
            begin_s = _children_s()
            status = in_child(lambda: _exit_status(cli.main))
            costs.append(_children_s() - begin_s)
            if status != 2 or any(Path().iterdir()):
                wrong.append(line)
        imports = {name: [_import_s(name) for _ in range(5)] for name in ("torch", "ppo_lab.cli")}
    os.chdir(Path(__file__).parents[1])
    sys.argv = typed
    slowest = max(range(len(costs)), key=costs.__getitem__)
    most_s = min(imports["ppo_lab.cli"]) + costs[slowest]
    rows: list[list[object]] = [
        ["commands", len(commands)],
        ["refused with exit status 2, nothing created", len(commands) - len(wrong)],
    ]
    for name, times in imports.items():
        cost = f"{min(times):.2f} ({statistics.median(times):.2f})"
        rows.append([f"to import {name}, least of 5, s (median)", cost])
    rows += [
        ["from there to the refusal, median, s", f"{statistics.median(costs):.2f}"],
        ["from there to the refusal, longest, s", f"{costs[slowest]:.2f}"],
        ["import and refusal, median, s",
         f"{min(imports['ppo_lab.cli']) + statistics.median(costs):.2f}"],
        ["import and refusal, longest, s", f"{most_s:.2f}"],
        ["goal", f"below {_MOST_S:g} s, {'met' if most_s < _MOST_S else 'missed'}"],
    ]  # fmt: skip
    what = (
        "The wrong commands of tests/config/test_wrong_configs.py, each in a process forked from "
        "one that has imported the command; processor time, user and system, which other load on "
        f"the machine makes longer. The longest: `{commands[slowest]}`."
    )
    parts = [what, table(["what", "figure"], rows), *(f"- not refused: `{line}`" for line in wrong)]
    publish("wrong_commands", "Wrong commands", parts, write=arguments.write)
    sys.exit(bool(wrong) or most_s >= _MOST_S)


def _children_s() -> float:
    """Return the processor time of all child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _import_s(name: str) -> float:
    begin_s = _children_s()
    subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
    return _children_s() - begin_s


def _exit_status(command: Callable[[], object]) -> None:
    """Leave the process with the command's exit status, without its words."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        command()
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)


if __name__ == "__main__":
    main()
