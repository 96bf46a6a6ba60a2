"""W&B without a server: what an offline run holds, read back with W&B's own reader."""

from __future__ import annotations

import os
import pty
import select
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ppo_lab.tracking import RunInfo, TrackingConfig, TrackingMode, WandbSink
from ppo_lab.tracking.base import fitted_id
from tests.helpers.wandb_processes import (
    CANARY_KEY,
    PROGRAM,
    Outcome,
    clean_environment,
    inspect,
    of_kind,
    summary_of,
)

Run = Callable[..., Outcome]


CANARIES = (b"argument-canary", b"environment-canary", b"host-canary")


def sync_folder(link: str) -> Path:
    tool, verb, folder = shlex.split(link)
    assert (tool, verb) == ("wandb", "sync")
    return Path(folder)


def test_each_run_holds_its_own_rows_and_nothing_of_the_others(
    run_program: Run, tmp_path: Path
) -> None:
    outcome = run_program(tmp_path / "outputs", 2, 2)
    for run_id, result in zip(("r0-l0", "r0-l1", "r1-l0", "r1-l1"), outcome.runs, strict=True):
        number, lane = int(run_id[1]), int(run_id[-1])
        folder = sync_folder(result["link"])
        assert folder.parent == tmp_path / "outputs" / "wandb"
        assert folder.name.startswith("offline-run-")
        records = inspect(folder)
        (started,) = of_kind(records, "run")
        config = dict(started["config"]["update"])
        config.pop("_wandb")
        assert config == {"ppo": {"epsilon": 0.2, "limit": "Infinity"}, "run": run_id}
        assert started["run_id"] == run_id
        assert started["display_name"] == f"name-{run_id}"
        assert started["project"] == "ppo_lab"
        assert started["run_group"] == "grid-1"
        assert started["job_type"] == "train"
        assert started["notes"] == "a note"
        assert sorted(started["tags"]) == ["cartpole", "mine", "x" * 64]  # cut, none empty
        assert started["resume"] is True
        history = [row["item"] for row in of_kind(records, "history")]
        assert [row["global_step"] for row in history] == [100, 200, 300]
        returns = [row["charts/episodic_return"] for row in history]
        assert returns == [10.0 + lane, 20.0 + lane, 30.0 + lane]
        assert [row["losses/value_loss"] for row in history] == ["NaN"] * 3
        assert history[0]["ppo/ratio.values"] == [1, 2]
        assert history[0]["ppo/ratio.bins"] == [0, 1, 2]
        (everything,) = [m for m in of_kind(records, "metric") if m.get("glob_name") == "*"]
        assert everything["step_metric"] == "global_step"
        summary = summary_of(records)
        assert summary["final_return"] == 30 + lane
        assert summary["loss"] == "NaN"
        (ended,) = of_kind(records, "exit")
        assert ended.get("exit_code", 0) == number


def test_wandbs_own_variables_hold_and_a_resumed_run_continues_without_repeating_rows(
    run_program: Run, tmp_path: Path
) -> None:
    variables = {
        "WANDB_PROJECT": "theirs",
        "WANDB_NAME": "first",
        "WANDB_TAGS": "a,b",
        "WANDB_RUN_GROUP": "g",
        "WANDB_JOB_TYPE": "j",
        "WANDB_DIR": str(tmp_path / "elsewhere"),
        "WANDB_RUN_ID": "chosen",
        "WANDB_MODE": "",
    }
    outputs = tmp_path / "outputs"
    first = run_program(outputs, 2, 1, "ids=single", **variables)
    folders = [sync_folder(result["link"]) for result in first.runs]
    assert {folder.parent for folder in folders} == {tmp_path / "elsewhere" / "wandb"}
    ids = [folder.name.partition("-run-")[2][16:] for folder in folders]
    assert ids == ["chosen", "single1-l0"]  # two runs never become one
    assert not outputs.exists()
    (started,) = of_kind(inspect(folders[0]), "run")
    assert started["project"] == "theirs"
    assert started["display_name"] == "first"
    assert started["run_group"] == "g"
    assert started["job_type"] == "j"
    assert {"mine", "a", "b"} < set(started["tags"])

    resumed = run_program(outputs, 1, 1, "ids=single", "first=2", **variables)
    part = sync_folder(resumed.runs[0]["link"])
    assert part not in folders
    records = inspect(part)
    assert of_kind(records, "run")[0]["run_id"] == "chosen"
    # Iterations 1 to 3 are in the first part.
    assert [row["item"]["iteration"] for row in of_kind(records, "history")] == [4]


def test_two_long_ids_stay_two_and_none_is_cut() -> None:
    stem = "x" * 70
    ids = [fitted_id(f"{stem}{number}") for number in range(2)]
    assert len(set(ids)) == 2
    assert {len(run_id) for run_id in ids} == {64}
    assert fitted_id("a/b") != fitted_id("a:b")


def test_system_metrics_are_recorded_once_for_all_lanes_and_no_secret_or_host_name_is_written(
    run_program: Run, tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"
    outcome = run_program(
        outputs,
        1,
        2,
        "token=argument-canary",
        "host=host-canary",
        "pause_s=2",
        MY_SECRET="environment-canary",
        WANDB_API_KEY=CANARY_KEY,
        WANDB_MODE="offline",
    )
    with_lane = [inspect(sync_folder(result["link"])) for result in outcome.runs]
    measured = [of_kind(records, "stats") for records in with_lane]
    assert {"proc.memory.rssMB", "memory_percent"} <= measured[0][0]["item"].keys()
    assert not measured[1]
    for records in with_lane:
        assert "host" not in of_kind(records, "run")[0]
        assert not of_kind(records, "environment")  # command line, user, packages, hardware
        texts = [text for record in records for text in strings_of(record)]
        assert len(texts) > 10
        assert socket.gethostname() not in texts
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        for canary in (*CANARIES, CANARY_KEY.encode()):
            assert canary not in content, path


def strings_of(value: object) -> Iterator[str]:
    """Yield all strings in a nesting of lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_of(item)


def test_without_a_key_a_terminal_is_not_asked_for_one(tmp_path: Path) -> None:
    mine, its = pty.openpty()
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(tmp_path / "outputs"), "1", "1"],
        env=clean_environment(tmp_path / "home"),
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    )
    os.close(its)
    try:
        shown = _read_to_the_end(mine, deadline=begin + 30)
        assert process.wait(5) == 0, shown
    finally:
        process.kill()
        os.close(mine)
    assert "wandb sync" in shown
    assert "(1)" not in shown  # the first line of wandb's menu


def _read_to_the_end(terminal: int, deadline: float) -> str:
    shown = b""
    while time.perf_counter() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                chunk = os.read(terminal, 4096)
            except OSError:  # Linux: the other side is closed
                break
            if not chunk:
                break
            shown += chunk
    return shown.decode()


@pytest.mark.parametrize(
    ("mode", "variable"),
    [
        (TrackingMode.disabled, None),
        (TrackingMode.auto, ("WANDB_MODE", "disabled")),
        (TrackingMode.auto, ("WANDB_DISABLED", "true")),
    ],
)
def test_a_disabled_sink_neither_writes_nor_links(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: TrackingMode,
    variable: tuple[str, str] | None,
) -> None:
    if variable is not None:
        monkeypatch.setenv(*variable)
    sink = WandbSink(TrackingConfig(mode=mode), tmp_path / "outputs")
    sink.start(RunInfo(tmp_path, "r", "n", None, (), 1, {}))
    sink.finish({}, 0)
    assert sink.link is None
    assert not (tmp_path / "outputs").exists()
