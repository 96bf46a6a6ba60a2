"""What a person sees while a study runs: the live table, or lines where there is no terminal."""

import io
import logging
import math

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console

from ppo_lab.config.study import Aggregate
from ppo_lab.grids.live_table import draw
from ppo_lab.studies.definition.objective import parse_objectives
from ppo_lab.studies.display.live_table import LiveTable
from ppo_lab.studies.display.log_lines import LogLines
from ppo_lab.studies.display.progress import StudyProgress
from ppo_lab.studies.results.format import number_text, params_text, score_text
from ppo_lab.studies.results.statistics import half_width
from ppo_lab.studies.results.trial_table import TrialSummary
from ppo_lab.studies.store.outcome import Counts
from ppo_lab.workers.base import TrialProgress, TrialReport

OBJECTIVES = parse_objectives("final_return", None, Aggregate.mean, num_seeds=2)
BEFORE = Counts(complete=3, pruned=1, failed=0, running=0, total=10)
OPENED = ("epsilon", "outputs/studies/epsilon", BEFORE, 2)


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def progress(clock):
    """A study of ten trials, four of them finished before this start."""
    progress = StudyProgress(OBJECTIVES, clock=clock)
    progress.open(*OPENED)
    return progress


def start(progress, number, **params):
    trial = TrialSummary(number, "search", params, slot=number % 2, num_seeds=2, total_steps=1000)
    progress.start(trial, attempt=1)


def end(progress, number, returns=(10.0, 14.0), state="COMPLETE", status="finished", violations=()):
    seeds = [{"final_return": value, "env_steps": 960} for value in returns]
    values = [sum(returns) / len(returns)] if state == "COMPLETE" else None
    reason = None if status == "finished" else "why"
    counts = Counts(complete=4, pruned=1, failed=0, running=1, total=10)
    outcome = {"status": status, "reason": reason, "values": values, "seeds": seeds}
    trial = create_trial(
        state=TrialState[state],
        values=values,
        params={"epsilon": 0.2},
        distributions={"epsilon": FloatDistribution(0.0, 1.0)},
        user_attrs={"outcome": outcome},
        constraints=dict(violations),
    )
    trial.number = number
    progress.end(trial, counts)


def advance(progress, number, step, *returns, vram_gib=None):
    progress.advance(TrialProgress(number, step, returns, 12345.6, vram_gib))


def drawn(progress, width=80, height=24):
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(draw(progress, console))
    return console.file.getvalue()


def test_the_interval_of_two_seeds_is_students():
    # Seeds 10 and 14: sd 2.828, standard error 2, t(0.975, 1 dof) = 12.706.
    assert half_width([10.0, 14.0]) == pytest.approx(25.41, abs=0.01)
    assert half_width([10.0]) is None
    assert half_width([10.0, None]) is None
    assert half_width([10.0, math.nan]) is None


def test_the_interval_of_an_iqm_ignores_the_ends():
    # Of 0, 4, 8, 100 the middle half is 4 and 8, winsorised 4, 4, 8, 8 with variance 16/3: standard
    # error sqrt(16/3) / (0.5 * sqrt(4)) = 2.309, t(0.975, 1 dof) = 12.706.
    wide = half_width([0.0, 4.0, 8.0, 100.0], Aggregate.iqm)
    assert wide == pytest.approx(29.34, abs=0.01)
    assert half_width([0.0, 4.0, 8.0, 9.0], Aggregate.iqm) == pytest.approx(wide)


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (123.45, "123.5"), (9.876, "9.88"), (0.01234, "0.0123"), (0, "0"),
     (-12.34, "-12.3"), (1.5e-9, "1.5e-09")],
)  # fmt: skip
def test_numbers_keep_about_three_digits(value, text):
    assert number_text(value) == text


def test_an_interval_ends_at_its_values_decimal():
    assert score_text(32.5, 0.764) == "32.5 ± 0.8"
    assert score_text(0.5, 0.0123) == "0.500 ± 0.012"
    assert score_text(32.5, None) == "32.5"
    assert score_text(None, None) == "-"


def test_parameters_drop_the_groups_above_them():
    params = {"memory.pin_memory": True, "lr": 0.00031234, "network": "tiny"}
    assert params_text(params) == "pin_memory=True lr=0.000312 network=tiny"


def test_a_resumed_study_starts_with_its_counts(progress):
    assert progress.headline == "4/10 trials  3 kept  1 pruned"


def test_the_time_left_follows_this_starts_own_pace(progress, clock):
    # 50 s for half a trial; five and a half of the ten are left: 550 s.
    start(progress, 4)
    advance(progress, 4, 500, 1.0, 2.0)
    clock.now_s += 50
    assert progress.eta_s() == pytest.approx(50 * 5.5 / 0.5)


def test_there_is_no_time_left_before_anything_ran(progress):
    assert progress.eta_s() is None


def test_a_running_trial_shows_return_and_interval_over_its_seeds(progress):
    start(progress, 4, epsilon=0.1)
    advance(progress, 4, 250, 10.0, 14.0)
    (row,) = (line for line in drawn(progress).splitlines() if "#4" in line)
    assert row.split() == ["#4", "25%", "12.0", "±", "25.4", "12,346", "running", "epsilon=0.1"]


def test_a_return_is_shown_once_every_seed_has_one(progress):
    start(progress, 4)
    advance(progress, 4, 250, 10.0, None)
    assert progress.running[4].mean_return(Aggregate.mean) == (None, None)


@pytest.mark.parametrize(
    ("state", "status", "label"),
    [("COMPLETE", "finished", "kept"), ("PRUNED", "pruned", "pruned"),
     ("PRUNED", "out_of_memory", "OOM"), ("PRUNED", "diverged", "diverged"),
     ("PRUNED", "over_budget", "over budget"), ("FAIL", "failed", "failed")],
)  # fmt: skip
def test_an_ended_trial_says_what_became_of_it(progress, state, status, label):
    start(progress, 4)
    end(progress, 4, state=state, status=status)
    assert progress.ended[-1].label == label
    assert label in drawn(progress)


def test_a_trial_beyond_a_limit_is_never_the_best(progress):
    end(progress, 4, returns=(500.0, 500.0), violations={"peak_host_gib<=1": 1.0})
    assert progress.best is None
    assert progress.ended[-1].label == "over limit"
    assert progress.ended[-1].reason == "peak_host_gib<=1 is broken"


def test_the_best_is_the_largest_so_far_also_of_earlier_starts(progress):
    progress.best = TrialSummary(1, "search", {"epsilon": 0.3}, label="kept", values=[11.0])
    end(progress, 4, returns=(8.0, 9.0))
    assert progress.best.number == 1
    end(progress, 5, returns=(12.0, 13.0))
    assert (progress.best.number, progress.best.values) == (5, (12.5,))
    assert "best  #5  12.5" in drawn(progress)


def test_a_crashed_attempt_and_its_retry_are_distinct(progress):
    start(progress, 4)
    progress.retry(4, "killed by SIGKILL", num_crashes=1, max_retries=2)
    start(progress, 4)
    lines = [line for line in drawn(progress).splitlines() if "#4" in line]
    assert "retry 1/2" in lines[0]
    assert "crashed" in lines[1]
    assert "killed by SIGKILL" in lines[1]


def test_an_outage_is_shown_until_the_storage_answers(progress):
    progress.lose_storage("claim", 12.0, "connection refused")
    shown = drawn(progress, width=120)
    assert "the storage is away for 12 s; trials go on meanwhile: connection refused" in shown
    start(progress, 4)
    assert "away" not in drawn(progress)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_or_lower_than_the_terminal(progress, width):
    for number in range(4, 60):
        start(progress, number, epsilon=0.1, **{f"key_{i}": i for i in range(9)})
        advance(progress, number, 100, 1e6, 2e6)
    lines = drawn(progress, width=width, height=20).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < 20
    if width >= 80:  # the numbers fit beside the parameters
        assert any("1,500,000" in line and "running" in line for line in lines)


def test_vram_has_a_column_only_where_it_is_measured(progress):
    start(progress, 4)
    assert "VRAM" not in drawn(progress)
    advance(progress, 4, 1, 1.0, 2.0, vram_gib=1.25)
    assert "VRAM" in drawn(progress)
    assert "1.25 G" in drawn(progress)


def test_the_live_table_leaves_the_screen_and_gives_handlers_their_stream_back(capsys):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    table = LiveTable(OBJECTIVES, console=console)
    handler = logging.StreamHandler()  # to stderr, as Hydra's is
    logging.getLogger().addHandler(handler)
    before = handler.stream
    try:
        table.open(*OPENED)
        assert handler.stream is not before
        logging.getLogger().warning("a warning")
        start(table, 4, epsilon=0.1)
        table.close()
        assert handler.stream is before
    finally:
        logging.getLogger().removeHandler(handler)
        table.close()
    shown = console.file.getvalue()
    assert "a warning\n" in shown
    assert "epsilon=0.1" in shown


@pytest.fixture
def lines(clock):
    """Log lines of a study that is open, and the list that they are written to."""
    written = []
    lines = LogLines(OBJECTIVES, clock=clock, write=written.append)
    lines.open(*OPENED)
    written.clear()
    return lines, written


def test_plain_lines_report_starts_ends_and_the_best(lines):
    lines, written = lines
    start(lines, 4, epsilon=0.2)
    end(lines, 4)
    lines.report(TrialReport(5, 10, (1.0,)), None)  # a report has no line
    lines.retry(5, "killed by SIGKILL", num_crashes=1, max_retries=2)
    assert written == [
        "#4 begins  epsilon=0.2",
        "#4 kept  12.0 ± 25.4 (95 %)  epsilon=0.2  in 0:00  best so far"
        "  [5/10 trials  4 kept  1 pruned  ETA 0:00]",
        "#5 killed by SIGKILL; run again (1 of 2)",
    ]


def test_an_outage_gets_a_line_now_and_then_and_not_at_every_try(lines):
    lines, written = lines
    for waited_s in (0.0, 0.2, 5.0, 29.0, 31.0, 40.0):
        lines.lose_storage("claim", waited_s, "connection refused")
    assert written[0] == "the storage is away (claim, 0 s); trying again: connection refused"
    assert len(written) == 2
    start(lines, 4)
    lines.lose_storage("claim", 0.0, "connection refused")  # the next outage
    assert len(written) == 4
    assert written[-1].endswith("; running trials go on: connection refused")
