"""The table of a grid: nothing is cut, seeds are averaged, and memory has its columns."""

import csv
import io
import math
from typing import Any

import pytest
from rich.console import Console

from ppo_lab.grids.results import write_results
from ppo_lab.grids.table import grid_table
from ppo_lab.tracking import reasons

RESULT = {"status": "finished", "final_return": 480.25, "best_return": 500.0, "collapsed": False,
          "env_steps_per_s": 52310.4, "wall_time_s": 12.5}  # fmt: skip


def shown(rows: list[dict[str, Any]], width: int = 80, *, is_terminal: bool = False) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=is_terminal, color_system=None)
    console.print(grid_table(rows), crop=False)
    return [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]


def test_what_all_jobs_share_is_above_and_what_varies_is_a_column():
    failed = {"status": "failed", "reason": "OOM", "overrides": ["epsilon=0.3", "env=cartpole"]}
    rows = [RESULT | {"overrides": ["epsilon=0.1", "env=cartpole"]}, failed]
    lines = shown(rows)
    assert lines[0] == "env=cartpole"
    assert lines[1].split() == ["#", "epsilon", "return", "best", "steps/s", "time", "status"]
    assert lines[3].split() == ["0", "0.1", "480.2", "500.0", "52,310", "12.5", "s", "finished"]
    assert lines[4].split() == ["1", "0.3", *"----", "failed"]
    assert reasons(rows) == "job 1 failed: OOM"


def test_seeds_are_one_row_with_the_interval_of_their_mean():
    # Returns 10 and 14: mean 12, standard error 2, t of one degree 12.706: +- 25.4.
    rows = [
        RESULT | {"final_return": value, "best_return": 20.0,
                  "overrides": [f"epsilon={epsilon}", f"seed={seed}"]}
        for epsilon in ("0.1", "none") for seed, value in ((1, 10.0), (2, 14.0))
    ]  # fmt: skip
    rows[3] |= {"status": "interrupted", "collapsed": True}
    lines = shown(rows, 120)
    assert lines[2].split()[:7] == ["0-1", "0.1", "2", "12.0", "±", "25.4", "20.0"]
    # Only the seed that finished counts, and of one seed there is no interval.
    assert lines[3].split()[:5] == ["2-3", "none", "2", "10.0", "20.0"]
    assert "1 collapsed" in lines[3]
    assert lines[3].endswith("1 finished, 1 interrupted")
    assert lines[-1] == "±: 95 % interval of the mean over the seeds that finished"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_cell_is_cut_or_folded_and_a_terminal_is_never_exceeded(is_terminal):
    keys = ["memory.checkpoint_activations", "total_steps", "separate_grad_clip"]
    rows = [RESULT | {"overrides": [f"{key}={n}00000" for key in keys]} for n in (1, 2)]
    lines = shown(rows, 80, is_terminal=is_terminal)
    assert "…" not in "".join(lines)
    for text in (*keys, "52,310", "12.5 s", "480.2"):
        assert any(text in line for line in lines)
    assert (max(map(len, lines)) <= 80) is is_terminal
    # In a pipe each job is one line; here what does not fit is a second table of the same rows.
    assert sum(line.startswith("0 ") for line in lines) == (2 if is_terminal else 1)


def test_memory_has_its_columns_in_one_unit():
    memory = {"forecast": {"peak_gib": 1.5}, "ledger": {"peak_gib": 1.25},
              "measured": {"host_gib": 3.0, "allocated_gib": 1.75}}  # fmt: skip
    bus = {"h2d_bytes": 2**30, "d2h_bytes": 2**29}
    first = RESULT | {"memory": memory, "pcie": bus, "overrides": ["memory=parked"]}
    lines = shown([first, RESULT | {"overrides": ["memory=auto"]}], 120)
    assert lines[0].split()[4:9] == ["forecast", "counted", "measured", "host", "PCIe"]
    assert lines[2].split()[4:9] == ["1.50", "1.25", "1.75", "3.00", "1.50"]
    assert lines[3].split()[4:9] == [*"-----"]
    assert any(line.startswith("GiB: peak") for line in lines)


def test_control_characters_are_shown_not_obeyed():
    rows = [{"status": "x\x1b", "overrides": [f"k={n}\x1b[2J"]} for n in "12"]
    assert "\x1b" not in "".join(shown(rows))


def test_results_csv_has_a_row_for_every_job(tmp_path):
    memory = {"ledger": {"peak_gib": 0.5}}
    rows = [RESULT | {"seed": 1, "overrides": ["lr=1e-3", "seed=1"], "memory": memory},
            {"status": "died", "seed": 2, "overrides": ["lr=1e-4", "seed=2"]}]  # fmt: skip
    write_results(tmp_path, rows)
    first, second = csv.DictReader((tmp_path / "results.csv").open())
    assert (first["lr"], first["seed"], first["final_return"]) == ("1e-3", "1", "480.25")
    assert math.isclose(float(first["counted_gib"]), 0.5)
    assert (second["status"], second["final_return"], second["job"]) == ("died", "", "1")
