"""What a person sees while a grid runs: the live table, or lines where there is no terminal."""

import io

import pytest
from rich.console import Console

from ppo_lab.grids.live_table import draw
from ppo_lab.grids.progress import GridProgress
from ppo_lab.tracking import Record, RunInfo, Terminal, TerminalSink
from ppo_lab.workers.base import TrialProgress

JOBS = {n: (f"epsilon=0.{n + 1}", "env=cartpole", "seed=1") for n in range(4)}


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def grid_of(style, clock, jobs=JOBS, width=80):
    console = Console(file=io.StringIO(), width=width, height=24)
    return GridProgress("grid", jobs, style, console=console, clock=clock)


def shown(grid):
    return grid.console.file.getvalue().splitlines()


def drawn(grid, width=80):
    console = Console(file=io.StringIO(), width=width, height=24)
    console.print(draw(grid, console))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_a_row_for_each_job_that_runs_or_has_ended(clock, width):
    grid = grid_of(Terminal.none, clock)
    for number in (0, 1, 2):
        grid.start(number, 1000)
    grid.advance(TrialProgress(1, 500, (123.4,), 2000.0, 1.5, kl=0.01, state="dead"))
    grid.end(0, {"status": "diverged", "reason": "loss is nan", "final_return": 9.0})
    clock.now_s = 30.0
    lines = drawn(grid, width)
    # One ended and half of another in 30 s: of 4 jobs 2.5 are left, 50 s.
    assert lines[0] == "grid  1 of 4 jobs ended, 1 running  1 diverged  ETA 0:50"
    assert ("KL" in lines[1].split()) is (width == 120)
    rows = [line.split() for line in lines if line.lstrip().startswith("#")]
    assert [row[0] for row in rows] == ["#2", "#1", "#0"]  # the newest first, then what has ended
    assert rows[0][-2:] == ["waiting", "epsilon=0.3"]
    assert rows[1][1:3] == ["50%", "123.4"]
    assert rows[1][-3:] == ["running", "dead", "epsilon=0.2"]  # what all jobs share is left out
    assert rows[2][-5:] == ["diverged", "epsilon=0.1", "loss", "is", "nan"]


def test_jobs_of_workers_print_a_line_every_ten_seconds_and_at_the_end(clock):
    grid = grid_of(Terminal.plain, clock)
    for number in range(4):
        grid.start(number, 1000)
    counts = []
    for now_s, number in ((5, 0), (10, 1), (15, 2), (30, None), (31, 3)):
        clock.now_s = now_s
        if number is not None:
            grid.end(number, {"status": "finished"})
        before = len(shown(grid))
        grid.tick()
        counts += [(now_s, line.partition(" jobs")[0]) for line in shown(grid)[before:]]
    assert counts == [(10, "2 of 4"), (30, "3 of 4"), (31, "4 of 4")]


def test_jobs_of_this_process_say_which_of_how_many_they_are(clock):
    grid = grid_of(Terminal.plain, clock)
    progress = grid.alone(2, 1000)
    sink = TerminalSink(progress)
    sink.start(RunInfo(None, "a", "a", None, (), 1000, {}))
    sink.record(Record(100, 1, {"charts/episodic_return_last100": 20.0, "ppo/kl_k3": 0.01}))
    assert grid.running[2].returns == (20.0,)
    assert (grid.running[2].step, grid.running[2].kl) == (100, 0.01)
    sink.finish({}, 0)
    clock.now_s = 10.0
    grid.end_alone(2, {"status": "finished", "final_return": 480.25, "collapsed": True})
    assert shown(grid) == [
        "job 3 of 4 begins  epsilon=0.3",
        "job 3 of 4 finished  collapsed  return 480.2  [1 of 4 jobs ended, 0 running  ETA 0:30]",
    ]


def test_a_resumed_grid_counts_the_jobs_that_are_left(clock):
    grid = grid_of(Terminal.plain, clock, {n: JOBS[n] for n in (1, 3)})
    grid.alone(3, 1000)
    assert shown(grid) == ["job 2 of 2 begins  epsilon=0.4"]


def test_a_silent_terminal_shows_nothing(clock):
    grid = grid_of(Terminal.none, clock)
    with grid:
        assert not grid.alone(0, 1000).is_shown
        grid.print("a line")
        clock.now_s = 20.0
        grid.end_alone(0, {"status": "finished"})
        grid.tick()
    assert shown(grid) == []
