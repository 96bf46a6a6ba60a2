"""W&B with a server that is away, broken, or hangs: a run goes on, at most 10 s later."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.stub_server import serve
from tests.helpers.wandb_processes import CANARY_KEY, Outcome, inspect

Run = Callable[..., Outcome]


@pytest.fixture
def run_with(run_program: Run, tmp_path: Path) -> Run:
    """Run the program beside a server: ``run_with(url, rounds, lanes, OPTION...)``."""

    def run(url: str, *words: int | str) -> Outcome:
        variables = {"WANDB_BASE_URL": url, "WANDB_API_KEY": CANARY_KEY}
        return run_program(tmp_path / "outputs", *words, **variables)

    return run


def kinds_of(link: str) -> list[str]:
    """Return the kinds of the records that the command ``link`` would upload."""
    return [record["type"] for record in inspect(Path(link.removeprefix("wandb sync ")))]


# Limit of the total time of start, records and finish.
LIMIT_S = 10.0


@pytest.mark.parametrize("fault", ["refused", "hang", "401", "429", "500"])
def test_a_broken_server_delays_the_first_run_at_most_and_the_second_not(
    run_with: Run, tmp_path: Path, fault: str
) -> None:
    outputs = tmp_path / "outputs"
    with serve(fault) as url:
        options = [] if fault == "hang" else ["init_timeout_s=1.0"]  # one with the default suffices
        outcome = run_with(url, 2, 1, *options)
    first, second = outcome.runs
    assert first["took_s"] <= LIMIT_S
    assert second["took_s"] <= 1.0
    assert outcome.wall_s <= LIMIT_S + 5.0  # start and exit of Python
    for result in (first, second):
        assert result["num_failures"] == 0
        assert "/offline-run-" in result["link"]
    assert outcome.stderr.count("tracking offline") == 1
    # The failed attempt leaves no empty run behind that `wandb sync` would upload.
    assert not list((outputs / "wandb").glob("run-*"))
    assert not any(CANARY_KEY.encode() in p.read_bytes() for p in outputs.rglob("*") if p.is_file())


def test_a_server_that_hangs_after_accepting_a_stack_costs_one_finish_for_all_lanes(
    run_with: Run,
) -> None:
    with serve("hang_after_init") as url:
        outcome = run_with(url, 1, 3)
    assert sum(result["took_s"] for result in outcome.runs) <= LIMIT_S
    assert outcome.wall_s <= LIMIT_S + 5.0
    for result in outcome.runs:
        kinds = kinds_of(result["link"])
        assert kinds.count("history") == 3  # `wandb sync` can upload all rows
        assert "exit" in kinds


def test_a_server_that_refuses_a_running_run_is_reported_and_loses_no_row(run_with: Run) -> None:
    with serve("401_after_init") as url:
        (result,) = run_with(url, 1, 1).runs
    assert "the server refused the rest of the run: filestream" in result["reason"]
    assert "401" in result["reason"]
    assert kinds_of(result["link"]).count("history") == 3


def test_the_death_of_wandbs_process_ends_neither_the_run_nor_later_ones(run_with: Run) -> None:
    with serve("ok") as url:
        outcome = run_with(url, 2, 2, "kill=core")
    assert "Traceback" not in outcome.stderr  # at exit either
    for result in outcome.runs[:2]:
        assert result["num_failures"] == 1
        assert "Connection" in result["reason"]
        if result["link"] is not None:  # what was on disk when the process died
            assert kinds_of(result["link"])
    for lane, result in enumerate(outcome.runs[2:]):
        assert result["num_failures"] == 0
        assert result["link"] == f"{url}/me/ppo_lab/runs/r1-l{lane}"


def test_a_good_server_gets_the_run_with_the_machines_metrics_but_not_its_name(
    run_with: Run,
) -> None:
    bodies: list[bytes] = []
    with serve("ok", bodies=bodies) as url:
        words = ("host=host-canary", "token=argument-canary", "pause_s=2")
        (result,) = run_with(url, 1, 1, *words).runs
    sent = b"".join(bodies)
    assert b"proc.memory.rssMB" in sent
    assert b"canary" not in sent
    assert result["link"] == f"{url}/me/ppo_lab/runs/r0-l0"
    assert result["num_failures"] == 0


def test_a_resumed_run_goes_on_under_its_id_after_the_rows_that_the_server_has(
    run_with: Run,
) -> None:
    history: dict[str, list[str]] = {}
    bodies: list[bytes] = []
    with serve("ok", history, bodies) as url:
        (first,) = run_with(url, 1, 1).runs
        assert b"name-r0-l0" in b"".join(bodies)
        bodies.clear()
        (resumed,) = run_with(url, 1, 1, "first=3").runs  # iterations 3 to 5; 3 is there already
    assert first["link"] == resumed["link"] == f"{url}/me/ppo_lab/runs/r0-l0"
    assert b"name-r0-l0" not in b"".join(bodies)  # it may have another name there by now
    assert list(history) == ["r0-l0"]
    assert [json.loads(row)["iteration"] for row in history["r0-l0"]] == [1, 2, 3, 4, 5]
