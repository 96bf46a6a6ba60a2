"""Progress lines, the summary panel and the table of a grid."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from ppo_lab.tracking import (
    Progress,
    Record,
    RunInfo,
    Terminal,
    TerminalSink,
    next_steps,
    places,
    reasons,
    summary_panel,
)
from ppo_lab.tracking.terminal import progress_line

METRICS = {
    "charts/episodic_return": 20.0,
    "ppo/epsilon": 0.2,
    "losses/clipfrac": 0.125,
    "losses/approx_kl": 0.01,
}
SUMMARY: dict[str, Any] = {
    "status": "finished",
    "reason": None,
    "final_return": 480.25,
    "best_return": 500.0,
    "collapsed": False,
    "env_steps_per_s": 52310.4,
    "wall_time_s": 12.5,
    "time": {"rollout_s": 6.25, "update_s": 5.0},
    "memory": {
        "strategy": "co_resident",
        "measured": {"host_gib": 0.25, "allocated_gib": 1.5, "phases_gib": {"update": 1.5}},
    },
    "folder": "/x/outputs/runs/one",
    "wandb": "wandb sync /x/outputs/wandb/offline-run-1",
    "overrides": ["epsilon=0.1", "env=cartpole", "network.sizes=[64,64]"],
}


class Clock:
    """A clock that advances only by assignment."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def describe(run_id: str, total_steps: int = 1000) -> RunInfo:
    return RunInfo(Path(), run_id, run_id, None, (), total_steps, {})


def plain_lines(*, seconds_per_record: float, num_records: int = 10) -> list[str]:
    """Return what a run of ``num_records`` records, 100 steps each, prints to a file."""
    out, clock = io.StringIO(), Clock()
    progress = Progress(Terminal.auto, Console(file=out, width=40), clock)
    sink = TerminalSink(progress)
    sink.start(describe("a", 100 * num_records))
    for iteration in range(1, num_records + 1):
        clock.now_s += seconds_per_record
        sink.record(Record(100 * iteration, iteration, METRICS))
    sink.finish({}, 0)
    return out.getvalue().splitlines()


def shown(style: Terminal, *records: Record, resumed_at: int = 0, is_terminal: bool = False) -> str:
    """Return what a run of 1,000 steps shows, a record each second."""
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, width=100, force_terminal=is_terminal)
    sink = TerminalSink(Progress(style, console, clock))
    sink.start(dataclasses.replace(describe("a"), resumed_at=resumed_at))
    for record in records:
        clock.now_s += 1.0
        sink.record(record)
    sink.finish({}, 0)
    return out.getvalue()


def text_of(renderable: RenderableType) -> str:
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_a_short_run_prints_its_first_record_and_its_end() -> None:
    first, last = plain_lines(seconds_per_record=0.5)
    # 100 steps in 0.5 s are 200 a second; 900 are left, 4.5 s, rounded to even.
    assert first == "100/1,000  return 20.0  ε 0.2  clipped 12.5%  200 steps/s  ETA 0:04"
    assert last == "1,000/1,000  return 20.0  ε 0.2  clipped 12.5%  200 steps/s  in 0:05"


def test_a_plain_line_comes_every_tenth_of_the_steps_and_not_within_ten_seconds() -> None:
    assert len(plain_lines(seconds_per_record=20.0)) == 10  # each record is a tenth
    assert len(plain_lines(seconds_per_record=5.0)) == 6  # records 1, 3, 5, 7, 9 and the end
    # 100 records of 2 s: a tenth is 20 s away, so records 1, 11, ..., 91 and the end.
    assert len(plain_lines(seconds_per_record=2.0, num_records=100)) == 11


def test_a_slow_run_prints_at_least_every_five_minutes() -> None:
    # 100 records of 150 s: a tenth would take 25 minutes, so every second record, and the end.
    assert len(plain_lines(seconds_per_record=150.0, num_records=100)) == 51


def test_the_lanes_of_a_stack_share_one_line() -> None:
    out, clock = io.StringIO(), Clock()
    progress = Progress(Terminal.plain, Console(file=out), clock)
    sinks = [TerminalSink(progress), TerminalSink(progress)]
    for lane, sink in enumerate(sinks):
        sink.start(describe(f"lane{lane}"))
    clock.now_s = 2.0
    for lane, sink in enumerate(sinks):
        # Returns 20 and nan: the mean is over lanes that have one. VRAM is the process's.
        returns = float("nan") if lane else 20.0
        own = {"charts/episodic_return": returns, "ppo/epsilon": 0.1 + 0.1 * lane}
        sink.record(Record(100, 1, METRICS | own | {"memory/allocated_gib": 1.25}))
    for sink in sinks:
        sink.finish({}, 0)
    last = out.getvalue().splitlines()[-1]
    assert last.startswith("2 lanes  200/2,000  return 20.0  ε 0.1 to 0.2  clipped 12.5%")
    assert "VRAM 1.25 GiB  100 steps/s" in last


def test_a_resumed_run_does_not_count_earlier_steps_as_speed() -> None:
    # 100 steps in this process's first second
    text = shown(Terminal.plain, Record(900, 9, {}), resumed_at=8)
    assert text == "900/1,000  100 steps/s  ETA 0:01\n"


def test_a_terminal_shows_a_live_line_and_leaves_one_plain_line() -> None:
    text = shown(Terminal.auto, Record(100, 1, METRICS), is_terminal=True)
    assert "━" in text
    assert text.splitlines()[-1].endswith("clipped 12.5%  100 steps/s  in 0:01")


def test_the_line_says_kl_and_that_the_policy_is_dead() -> None:
    dead = Record(100, 1, METRICS | {"ppo/kl_k3": 0.00432}, state="dead")
    line = shown(Terminal.plain, dead).splitlines()[0]
    assert line.startswith("100/1,000  return 20.0  dead  ε 0.2  clipped 12.5%  KL 0.0043  ")
    # A record that is no longer dead is not shown as dead.
    again = shown(Terminal.plain, dead, Record(200, 2, METRICS)).splitlines()[-1]
    assert "dead" not in again


def test_a_narrow_line_loses_what_matters_least_and_keeps_the_state_and_the_time() -> None:
    lane = TerminalSink(Progress(), 1_000_000, 100_000, state="collapsed")
    lane.metrics = METRICS | {"ppo/kl_k3": 0.01, "memory/allocated_gib": 1.5}
    line = progress_line([lane], elapsed_s=10.0, width=70)
    assert line == "100,000/1,000,000  return 20.0  collapsed  KL 0.01  ETA 1:30"
    assert len(progress_line([lane], 10.0)) > 100


def test_next_steps_are_commands_to_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs" / "a run"
    shown = next_steps(folder, has_policy=True, is_resumable=True, tracked=False)
    assert shown.splitlines() == [
        "resume  python -m ppo_lab resume='outputs/a run'",
        "play    python -m ppo_lab.play 'outputs/a run'",
        "report  python -m ppo_lab.report 'outputs/a run'",
    ]
    assert "browse" in next_steps(folder, has_policy=False, is_resumable=False, tracked=True)


def test_none_prints_nothing() -> None:
    assert shown(Terminal.none, Record(100, 1, METRICS)) == ""


def test_the_panel_shows_return_time_and_memory() -> None:
    text = text_of(summary_panel(SUMMARY))
    assert "finished in 12.5 s" in text
    assert "480.2 final, 500.0 best" in text
    assert "52,310 steps/s" in text
    # Of 12.5 s: 6.25 rollout, 5 update, and 1.25 that no phase claims.
    rows = {line.split()[1]: line.split() for line in text.splitlines() if "%" in line}
    assert {name: (row[-4], row[-3]) for name, row in rows.items()} == {
        "rollout": ("50%", "6.25"),
        "update": ("40%", "5.00"),
        "rest": ("10%", "1.25"),
    }
    assert rows["rollout"][2] == "█" * 12
    memory = [line.strip("│ ").split() for line in text.splitlines() if "iB" in line]
    assert [(row[0], *row[-2:]) for row in memory] == [
        ("allocated", "1.50", "GiB"),
        ("host", "256.0", "MiB"),
    ]


def test_the_panel_puts_forecast_and_count_side_by_side() -> None:
    forecast = {"peak_gib": 2.0, "categories_gib": {"weights": 1.5, "rollout": 0.5, "optimizer": 0}}
    ledger = {"peak_gib": 2.5, "categories_gib": {"weights": 1.5, "rollout": 1.0, "optimizer": 0}}
    measured = {"host_gib": 9.0, "allocated_gib": 3.0}
    memory = {"forecast": forecast, "ledger": ledger, "measured": measured}
    lines = text_of(summary_panel(SUMMARY | {"memory": memory})).splitlines()
    begin = next(i for i, line in enumerate(lines) if "memory went" in line)
    rows = [line.strip("│ ").split() for line in lines[begin + 1 : -1]]
    # A row without a byte is left out; a bar's full length is the device's largest, 3 GiB.
    assert rows == [
        ["forecast", "counted"],
        ["weights", "█" * 12, "1.50", "GiB", "1.50", "GiB"],
        ["rollout", "█" * 8, "512.0", "MiB", "1.00", "GiB"],
        ["total", "█" * 20, "2.00", "GiB", "2.50", "GiB"],
        ["allocated", "█" * 24, "3.00", "GiB"],
        ["host", "9.00", "GiB"],
    ]
    counted_alone = text_of(summary_panel(SUMMARY | {"memory": {"ledger": ledger}}))
    assert "counted" in counted_alone
    assert "forecast" not in counted_alone


def test_the_panel_says_what_the_device_waited_for() -> None:
    perf = {
        "kernel_busy_frac": 0.5,
        "exposed_copy_frac": 0.25,
        "idle_no_copy_frac": 0.25,
        "window_s": 1.5,
    }
    text = text_of(summary_panel(SUMMARY | {"perf": perf}))
    assert "device time, profiled for 1.50 s" in text
    rows = [line.strip("│ ").split() for line in text.splitlines() if "waits for" in line]
    assert rows == [["waits", "for", "the", side, "█" * 6, "25%"] for side in ("bus", "host")]
    assert "waits for" not in text_of(summary_panel(SUMMARY))


def test_places_are_short_enough_to_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inside = {"folder": f"{tmp_path}/outputs/runs/one", "wandb": f"wandb sync {tmp_path}/outputs/w"}
    assert places(inside) == "folder  outputs/runs/one\nW&B     wandb sync outputs/w"
    assert places({"folder": "/x/outputs/runs/one"}) == "folder  /x/outputs/runs/one"


def test_the_panel_of_a_failed_run_says_why_and_leaves_out_what_is_absent() -> None:
    text = text_of(summary_panel({"status": "failed", "reason": "out of memory [cuda]"}))
    assert "failed" in text
    assert "out of memory [cuda]" in text
    assert "memory went" not in text
    assert "return" not in text


def test_the_panel_says_which_tracking_failed_and_shows_no_control_characters() -> None:
    failed = {"WandbSink": "1 failed, first finish: RuntimeError: \x1b[31mrefused"}
    summary = {"status": "finished", "tracking_failures": failed, "reason": "http://u:pw1@h\x07"}
    text = text_of(summary_panel(summary))
    assert r"tracking: WandbSink 1 failed, first finish: RuntimeError: \x1b[31mrefused" in text
    assert r"http://...@h\x07" in text
    rows = [{"status": "x\x1b", "reason": "a\nb"} for _ in range(2)]
    assert reasons(rows).splitlines() == [rf"job {n} x\x1b: a\nb" for n in (0, 1)]
