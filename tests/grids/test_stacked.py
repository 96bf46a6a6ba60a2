"""The progress line of a stacked grid."""

import dataclasses

from ppo_lab.grids import stacked as stacked_grid
from ppo_lab.tracking import Terminal
from tests.helpers.studies import plan_of


def line_of(config, num_jobs, monkeypatch):
    """Return a progress line, and its clock in seconds."""
    clock = [0.0]
    monkeypatch.setattr(stacked_grid.time, "monotonic", lambda: clock[0])
    return stacked_grid._ProgressLine(config, num_jobs), clock


def test_a_strategy_of_one_lane_is_told_once(monkeypatch, capsys):
    stacked, alone = plan_of().config, plan_of("memory=offloaded_optimizer").config
    line, _ = line_of(stacked, 3, monkeypatch)
    for config in (stacked, alone, alone):
        line.note_unstackable(config)
    assert capsys.readouterr().err == (
        "memory=offloaded_optimizer trains 1 lane: its jobs run one at a time in each worker\n"
    )


def test_a_line_is_due_after_ten_seconds_with_something_new_and_at_the_end(monkeypatch, capsys):
    line, clock = line_of(plan_of().config, 20, monkeypatch)
    shown = []
    for now_s, num_ended in ((5, 1), (10, 2), (15, 3), (30, 3), (41, 3), (42, 19), (43, 20)):
        clock[0] = now_s
        line.show(num_ended, 4)
        if text := capsys.readouterr().err:
            shown.append((now_s, text.split(" of ")[0]))
    assert shown == [(10, "2"), (30, "3"), (42, "19"), (43, "20")]


def test_a_silent_terminal_is_told_nothing(monkeypatch, capsys):
    config = plan_of().config
    tracking = dataclasses.replace(config.tracking, terminal=Terminal.none)
    line, clock = line_of(dataclasses.replace(config, tracking=tracking), 1, monkeypatch)
    clock[0] = 20.0
    line.show(1, 0)
    assert capsys.readouterr().err == ""
