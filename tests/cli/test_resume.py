"""``resume=`` and ``fork=``: runs that go on, and grids that run what is missing."""

import json
import shutil

import pytest

from ppo_lab.runner.lock import lock_run_folder
from ppo_lab.tracking import read_metrics
from tests.helpers.commands import ppo_lab

QUICK = [
    "network=tiny",
    "tracking=local",
    "num_steps=32",
    "num_threads=1",
    "tracking.terminal=none",
]


def files_of(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock")
    return {path: path.read_bytes() for path in files}


def only_run(folder):
    (path,) = (folder / "outputs" / "runs").iterdir()
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of four iterations: the folder where it was started."""
    folder = tmp_path_factory.mktemp("resumed")
    done = ppo_lab(folder, *QUICK, "total_steps=1024")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_that_goes_on_is_one_that_was_never_stopped(run, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    shutil.copytree(run / "outputs", tmp_path / "a" / "outputs")
    for folder, words in (
        (tmp_path / "a", ["resume=last", "total_steps=2048"]),
        (tmp_path / "b", [*QUICK, "total_steps=2048"]),
    ):
        done = ppo_lab(folder, *words)
        assert done.returncode == 0, done.stderr
        assert "finished" in done.stdout
    resumed, whole = only_run(tmp_path / "a"), only_run(tmp_path / "b")
    policy = "checkpoint/model.safetensors"
    assert (resumed / policy).read_bytes() == (whole / policy).read_bytes()
    losses = [[row["losses/policy_loss"] for row in read_metrics(path / "metrics.jsonl")]
              for path in (resumed, whole)]  # fmt: skip
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8
    assert "total_steps: 2048" in (resumed / ".hydra" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["resume=last"], "the run has finished; a larger total_steps="),
        (["resume=last", "epsilon=0.3", "total_steps=2048"], "epsilon 0.2 -> 0.3; fork="),
        (["resume=outputs"], "must be the folder of a run or grid, or last"),
        (["fork=nowhere"], "must be the folder of a run, or last"),
        (["fork=last", "resume=last"], "to resume or to fork"),
    ],
)
def test_what_cannot_go_on_is_refused_and_nothing_is_touched(run, words, named):
    before = files_of(run)
    done = ppo_lab(run, *words)
    assert done.returncode == 2
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert files_of(run) == before


def test_a_fork_is_a_new_run_with_the_curve_up_to_there(run, tmp_path):
    source, before = only_run(run), files_of(run)
    done = ppo_lab(tmp_path, f"fork={source}", "epsilon=0.3", "total_steps=1536")
    assert done.returncode == 0, done.stderr
    fork = only_run(tmp_path)
    rows = read_metrics(fork / "metrics.jsonl")
    assert [row["ppo/epsilon"] for row in rows] == pytest.approx([0.2] * 4 + [0.3] * 2)
    assert json.loads((fork / "summary.json").read_text())["forked_from"] == str(source)
    ids = [json.loads(next(path.glob("checkpoints/*/manifest.json")).read_text())["run_id"]
           for path in (source, fork)]  # fmt: skip
    assert ids[0] != ids[1]
    assert files_of(run) == before


def test_a_folder_in_which_a_run_trains_is_left_as_it_is(tmp_path):
    folder = tmp_path / "there"
    with lock_run_folder(folder):
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text("the first run's")
        before = files_of(folder)
        done = ppo_lab(tmp_path, *QUICK, "total_steps=1024", f"hydra.run.dir={folder}")
        assert done.returncode == 2
        assert "a run is training in it: process" in done.stderr
        assert files_of(folder) == before


def test_a_strangers_run_folder_sets_nothing_of_hydra(run, tmp_path):
    shutil.copytree(run / "outputs", tmp_path / "outputs")
    hydra = only_run(tmp_path) / ".hydra" / "hydra.yaml"
    for found, planted in (
        ("  callbacks: {}", "  callbacks: {x: {_target_: builtins.open, file: canary, mode: w}}"),
        ("    env_set: {}", "    env_set: {CANARY: x}"),
        ("    task:", "    task:\n    - +hydra.job.env_set.CANARY=x"),
    ):
        text = hydra.read_text()
        assert found in text
        hydra.write_text(text.replace(found, planted, 1))
    done = ppo_lab(tmp_path, "resume=last", "total_steps=1280")
    assert done.returncode == 2
    assert "hydra.job.env_set" in done.stderr
    hydra.write_text(hydra.read_text().replace("    - +hydra.job.env_set.CANARY=x\n", ""))
    assert ppo_lab(tmp_path, "resume=last", "total_steps=1280").returncode == 0
    assert "CANARY" not in hydra.read_text()
    assert not (tmp_path / "canary").exists()


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A grid of three jobs: its folder, and where it was started."""
    folder = tmp_path_factory.mktemp("grid")
    done = ppo_lab(
        folder, *QUICK, "total_steps=512", "seed=1,2,3", "hydra.sweep.subdir=s${seed}", "-m"
    )
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "outputs" / "grids").iterdir()
    return folder, path


def test_a_grid_runs_what_is_missing(grid, tmp_path):
    folder, path = grid
    before = files_of(path / "s1") | files_of(path / "s3")
    policy = (path / "s2" / "checkpoint" / "model.safetensors").read_bytes()
    shutil.rmtree(path / "s2")
    done = ppo_lab(folder, f"resume={path.relative_to(folder)}")
    assert done.returncode == 0, done.stderr
    assert "all 3 jobs finished" in done.stdout
    assert files_of(path / "s1") | files_of(path / "s3") == before
    assert (path / "s2" / "checkpoint" / "model.safetensors").read_bytes() == policy


def test_another_grid_is_not_taken_for_this_one(grid):
    folder, path = grid
    before = files_of(path)
    done = ppo_lab(folder, f"resume={path}", "gamma=0.9")
    assert done.returncode == 2
    assert "gamma=0.9 now" in done.stderr
    assert files_of(path) == before


def test_a_grid_is_not_started_where_a_run_is(grid):
    folder, path = grid
    before = files_of(path)
    words = ["total_steps=512", "seed=1,2", "hydra.sweep.subdir=s${seed}"]
    done = ppo_lab(folder, *QUICK, *words, f"hydra.sweep.dir={path}", "-m")
    assert done.returncode == 2
    assert f"holds a run already; choose another folder, or resume={path}" in done.stderr
    assert files_of(path) == before
