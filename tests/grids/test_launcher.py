"""``hydra/launcher=stacked``: a grid as lanes, beside the same grid by Hydra's own launcher."""

import json
import os
import re
import signal
import time

import pytest

from ppo_lab.tracking import read_metrics
from tests.helpers.commands import ppo_lab, start

GRID = (
    *("network=tiny", "num_envs=2", "num_steps=32", "num_epochs=1", "total_steps=256"),
    *("tracking=local", "device=cpu", "compile=never", "hydra/launcher=stacked"),
)


def grid(folder, *arguments):
    folder.mkdir(exist_ok=True)
    return start(folder, *GRID, *arguments, "-m", OMP_NUM_THREADS="1")


def only_grid(folder):
    (made,) = (folder / "outputs" / "grids").iterdir()
    return made


def summaries_in(folder):
    files = only_grid(folder).glob("*/summary.json")
    return {int(path.parent.name): json.loads(path.read_text()) for path in files}


def table_in(shown):
    """Return number, epsilon and seed of each row."""
    return [line.split()[:3] for line in shown.splitlines() if line[:1] in "0123"]


def test_a_grid_leaves_what_hydras_own_launcher_leaves(tmp_path):
    jobs = ("epsilon=0.1,none", "seed=1,2")
    stacked, basic = (
        grid(tmp_path / "stacked", *jobs, "hydra.launcher.num_workers=1"),
        grid(tmp_path / "basic", *jobs, "hydra/launcher=basic"),
    )
    shown = [process.communicate(timeout=240) for process in (stacked, basic)]
    assert stacked.returncode == basic.returncode == 0, shown
    assert table_in(shown[0][0]) == table_in(shown[1][0])
    assert "4 of 4 jobs ended" in shown[0][1]
    mine, theirs = summaries_in(tmp_path / "stacked"), summaries_in(tmp_path / "basic")
    assert mine.keys() == theirs.keys() == {0, 1, 2, 3}
    folders = [only_grid(tmp_path / name) for name in ("stacked", "basic")]
    for number in mine:
        assert mine[number].keys() == theirs[number].keys() | {"stack"}
        left = [
            {str(p.relative_to(folder / str(number))) for p in (folder / str(number)).rglob("*")}
            for folder in folders
        ]
        assert left[0] == left[1]
        rows = [read_metrics(folder / str(number) / "metrics.jsonl") for folder in folders]
        assert len(rows[0]) == len(rows[1]) == 4
        assert rows[0][0]["losses/value_loss"] == pytest.approx(
            rows[1][0]["losses/value_loss"], rel=1e-4
        )


def test_a_bad_option_of_the_launcher_is_refused_before_anything_is_made(tmp_path):
    done = ppo_lab(tmp_path, *GRID, "seed=1,2", "hydra.launcher.max_lanes=none", "-m")
    assert done.returncode == 2
    assert "hydra.launcher.max_lanes=" in done.stderr
    assert not (tmp_path / "outputs").exists()


def wait_for(condition, timeout_s=120.0):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def is_training(folder, number):
    return list(folder.glob(f"outputs/grids/*/{number}/metrics.jsonl"))


def test_the_job_that_kills_its_workers_fails_with_that_reason_and_the_others_run(tmp_path):
    process = grid(
        tmp_path, "total_steps=100000000,128,192,256",
        "hydra.launcher.num_workers=1", "hydra.launcher.max_lanes=1",
    )  # fmt: skip
    wait_for(lambda: is_training(tmp_path, 0))
    (log,) = tmp_path.glob("outputs/grids/*/worker_0.log")
    wait_for(lambda: " 1 arrives" in log.read_text())  # it waits in the same worker
    for num_starts in (1, 2):  # beside job 1, which is as suspicious, and then alone
        wait_for(lambda num=num_starts: log.read_text().count(" 0 arrives") == num)
        os.kill(int(re.findall(r"process (\d+)", log.read_text())[-1]), signal.SIGKILL)
    shown, told = process.communicate(timeout=240)
    assert process.returncode == 1, told
    found = [(s["status"], s["reason"]) for _, s in sorted(summaries_in(tmp_path).items())]
    dead = ("failed", "the process that trained it was killed by SIGKILL")
    assert found == [dead, *[("finished", None)] * 3]
    assert "job 0 failed: the process that trained it was killed by SIGKILL" in shown


def test_ctrl_c_ends_a_grid_with_its_table_and_the_folders_of_what_ran(tmp_path):
    process = grid(tmp_path, "seed=1,2,3,4,5,6,7,8,9", "total_steps=100000000")
    wait_for(lambda: is_training(tmp_path, 0))
    process.send_signal(signal.SIGINT)
    shown, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert summaries_in(tmp_path)[0]["status"] == "interrupted"
    assert "interrupted" in shown
    assert "Traceback" not in told


def test_sigterm_to_the_whole_group_as_by_timeout_or_slurm_leaves_runs_that_can_go_on(tmp_path):
    process = grid(tmp_path, "seed=1,2", "total_steps=100000000")
    for number in (0, 1):
        wait_for(lambda n=number: [p for p in is_training(tmp_path, n) if p.read_text()])
    os.killpg(process.pid, signal.SIGTERM)  # the command, the fork server, the workers
    shown, told = process.communicate(timeout=120)
    assert process.returncode in (75, 143), told
    assert {s["status"] for s in summaries_in(tmp_path).values()} == {"interrupted"}
    assert len([*tmp_path.glob("outputs/grids/*/*/checkpoints/*")]) >= 2
    assert "python -m ppo_lab resume=" in shown
