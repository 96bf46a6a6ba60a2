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
from tests.config import test_wrong_configs as corpus

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
    costs, wrong = [], []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for line in commands:
            sys.argv = ["ppo_lab", *shlex.split(line)]
            begin = os.times()
            status = in_child(lambda: _exit_status(cli.main))
            end = os.times()
            costs.append(end[2] + end[3] - begin[2] - begin[3])
            if status != 2 or any(Path().iterdir()):
                wrong.append(line)
        begin = os.times()
        for _ in range(5):
            subprocess.run([sys.executable, "-c", "import ppo_lab.cli"], check=True)
        end = os.times()
        start_s = (end[2] + end[3] - begin[2] - begin[3]) / 5
    os.chdir(Path(__file__).parents[1])
    slowest = max(range(len(costs)), key=costs.__getitem__)
    rows: list[list[object]] = [
        ["commands", len(commands)],
        ["refused with exit status 2, nothing created", len(commands) - len(wrong)],
        ["to import the command: mean of 5, s", f"{start_s:.2f}"],
        ["from there to the refusal: median, s", f"{statistics.median(costs):.2f}"],
        ["the longest, s", f"{costs[slowest]:.2f}"],
        ["together: median, s", f"{start_s + statistics.median(costs):.2f}"],
        ["together: longest, s", f"{start_s + costs[slowest]:.2f}"],
    ]
    what = (
        "The wrong commands of tests/config/test_wrong_configs.py, each in a process forked from "
        "one that has imported the command; processor time, user and system. The longest: "
        f"`{commands[slowest]}`."
    )
    parts = [what, table(["what", "figure"], rows), *(f"- not refused: `{line}`" for line in wrong)]
    publish("wrong_commands", "Wrong commands", parts, write=arguments.write)
    sys.exit(bool(wrong) or start_s + costs[slowest] >= _MOST_S)


def _exit_status(command: Callable[[], object]) -> None:
    """Leave the process with the command's exit status, without its words."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        command()
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)


if __name__ == "__main__":
    main()
