"""The commands of the README, as a person types them, in an empty folder."""

import json
import re
import signal
import time

import numpy as np
import pytest

from ppo_lab import load_policy
from ppo_lab.config.compose import check_jobs, register
from ppo_lab.tracking import read_metrics
from tests.helpers.commands import ppo_lab, start

QUICK = ["network=tiny", "total_steps=4096"]


def wait_for(folder, pattern):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(folder.glob(pattern)):
        time.sleep(0.05)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One quick run: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    done = ppo_lab(folder, *QUICK, "name=quick")
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "outputs" / "runs").iterdir()
    return path, done


def test_a_run_leaves_everything_in_its_folder(run):
    path, _ = run
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_quick", path.name)
    names = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    assert names == {
        ".hydra/config.yaml",
        ".hydra/hydra.yaml",
        ".hydra/overrides.yaml",
        "checkpoint/model.safetensors",
        "checkpoint/policy.json",
        "checkpoints/4/manifest.json",
        "checkpoints/4/state.json",
        "checkpoints/4/state.safetensors",
        "log",
        "metrics.jsonl",
        "run.lock",
        "summary.json",
    }


def test_a_run_ends_with_a_panel_on_stdout_and_progress_on_stderr(run):
    path, done = run
    assert "finished" in done.stdout
    assert "where the time went" in done.stdout
    assert f"folder  outputs/runs/{path.name}\n" in done.stdout
    assert "W&B     wandb sync outputs/wandb/offline-run-" in done.stdout
    assert "4,096/4,096" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_summary_names_result_settings_versions_and_commit(run):
    path, _ = run
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["env_steps"] == 4096
    assert summary["epsilon"] == 0.2
    assert summary["seed"] == 1
    assert summary["overrides"] == [*QUICK, "name=quick"]
    assert 8 < summary["final_return"] < 500
    assert summary["best_return"] >= summary["final_return"]
    assert summary["collapsed"] is None  # four iterations: a tenth of them is no window
    assert {"torch", "gymnasium", "hydra-core", "python"} <= summary["versions"].keys()
    phases = summary["time"]
    assert set(phases) == {
        "env_s",
        "rollout_s",
        "advantages_s",
        "update_s",
        "diagnostics_s",
        "record_s",
    }
    assert 0 < sum(phases.values()) <= summary["wall_time_s"]
    assert summary["memory"]["strategy"] == "co_resident"
    assert summary["memory"]["measured"]["host_gib"] > 0.05  # Python and torch alone take more
    assert summary["memory"].keys() == {"strategy", "measured"}  # no forecast unless asked for
    # Two networks of 4 -> 64 -> 64: 4 * 64 + 64 + 64 * 64 + 64 = 4,480; heads 65 * 2 and 65.
    assert summary["num_parameters"] == {"actor": 4480 + 130, "critic": 4480 + 65}


def test_each_iteration_is_a_line_of_metrics(run):
    path, _ = run
    rows = read_metrics(path / "metrics.jsonl")
    assert [row["global_step"] for row in rows] == [1024, 2048, 3072, 4096]
    last = rows[-1]
    for name in (
        "charts/episodic_return", "charts/episodic_length", "charts/SPS", "charts/learning_rate",
        "losses/value_loss", "losses/policy_loss", "losses/entropy", "losses/old_approx_kl",
        "losses/approx_kl", "losses/clipfrac", "losses/explained_variance", "losses/grad_norm",
        "ppo/epsilon", "ppo/clip_frac", "ppo/clip_above_frac", "ppo/cut_below_frac",
        "ppo/ratio_min", "ppo/ratio_p99", "ppo/kl_k1", "ppo/kl_k2", "ppo/kl_k3", "ppo/ess_frac",
        "ppo/entropy", "ppo/entropy_frac", "time/rollout_s", "time/update_s", "time/env_s",
    ):  # fmt: skip
        assert np.isfinite(last[name]), name
    # Every one of the rollout's 1,024 ratios is in a bin.
    assert sum(last["ppo/ratio"]["counts"]) == 1024
    assert len(last["ppo/ratio"]["edges"]) == 65


def test_on_a_cpu_there_are_no_cuda_keys(run):
    path, _ = run
    if json.loads((path / "summary.json").read_text())["machine"]["device"] != "cpu":
        pytest.skip("this run was on CUDA")
    for row in read_metrics(path / "metrics.jsonl"):
        assert not [name for name in row if name.startswith(("memory/", "pcie/"))]


def test_the_saved_policy_acts_on_numpy_observations(run):
    path, _ = run
    policy = load_policy(path)
    action = policy.act(np.zeros(4))
    assert action in (0, 1)
    batch = policy.act(np.zeros((5, 4)), deterministic=False, seed=3)
    assert batch.shape == (5,)
    assert set(batch.tolist()) <= {0, 1}


def test_play_evaluates_the_saved_policy(run):
    path, _ = run
    done = ppo_lab(path, str(path), "--episodes", "3", "--json", module="ppo_lab.play")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["returns"]) == 3
    assert result["eval_return"] == pytest.approx(np.mean(result["returns"]))
    shown = ppo_lab(path, str(path), "--episodes", "3", module="ppo_lab.play").stdout
    assert f"eval_return {result['eval_return']:,.1f}" in shown


def test_play_refuses_a_folder_without_a_policy(tmp_path):
    done = ppo_lab(tmp_path, str(tmp_path), module="ppo_lab.play")
    assert done.returncode == 2
    assert "no checkpoint/policy.json" in done.stderr


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """The README's grid, quick: two values of epsilon, side by side."""
    folder = tmp_path_factory.mktemp("grid")
    done = ppo_lab(folder, "epsilon=0.1,none", *QUICK, "-m")
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "outputs" / "grids").iterdir()
    return path, done


def test_a_grid_makes_a_folder_and_a_wandb_run_for_each_job_and_one_table(grid):
    path, done = grid
    files = {"0", "1", "multirun.yaml", "report.html", "results.csv", "run.lock"}
    assert {p.name for p in path.iterdir()} == files
    wandb_runs = list((path.parents[1] / "wandb").glob("offline-run-*"))
    assert len(wandb_runs) == 2
    assert "all 2 jobs finished" in done.stdout
    assert "job 2 of 2 begins  epsilon=none" in done.stderr
    assert "epsilon" in done.stdout
    summaries = [json.loads((path / str(i) / "summary.json").read_text()) for i in (0, 1)]
    assert summaries[0]["epsilon"] == 0.1
    assert "epsilon" not in summaries[1]
    assert not summaries[1]["clipped"]


def test_a_report_draws_a_grid(grid, tmp_path):
    path, _ = grid
    output = tmp_path / "returns.png"
    done = ppo_lab(tmp_path, str(path), "-o", str(output), module="ppo_lab.report")
    assert done.returncode == 0, done.stderr
    assert output.read_bytes().startswith(b"\x89PNG")
    assert ppo_lab(tmp_path, str(tmp_path / "no"), module="ppo_lab.report").returncode == 2


def test_what_is_wrong_with_one_job_is_told_and_does_not_stop_a_grid(tmp_path):
    done = ppo_lab(
        tmp_path, "env=gymnasium", "env.id=tests.helpers.faulty_env:Faulty-v0", "num_envs=2",
        "+env.kwargs.num_envs=2", "+env.kwargs.fault=error,'nan reward','error in close'",
        "total_steps=512", "network=tiny", "tracking=local",
        "hydra.sweep.subdir=job_${hydra.job.num}", "report=false", "-m",
    )  # fmt: skip
    assert done.returncode == 1
    (path,) = (tmp_path / "outputs" / "grids").iterdir()
    assert not (path / "report.html").exists()
    failed, nan, close = (
        json.loads((path / f"job_{i}" / "summary.json").read_text()) for i in range(3)
    )
    assert (failed["status"], failed["error"]) == ("failed", "EnvironmentFault")
    assert re.search(r"simulator hung up \(.*tests/helpers/faulty_env.py:\d+", failed["reason"])
    assert f"job 0 failed: {failed['reason']}" in done.stdout
    assert nan["status"] == "diverged"
    assert nan["reason"].startswith("the reward is nan in the rollout (step 4 of 128")
    assert not (path / "job_1" / "checkpoint").exists()  # a policy of NaNs is no policy
    assert "job 1 diverged: " in done.stdout
    assert close["status"] == "finished"
    assert "no such process" in (path / "job_2" / "log").read_text()
    assert "Traceback" not in (path / "job_0" / "log").read_text()  # the reason names the line


def stopped(folder, metrics, number, *arguments):
    """Send a signal to a command once there are two rows of ``metrics``; return what it showed."""
    process = start(folder, "network=tiny", "compile=never", "tracking=local", *arguments)
    deadline = time.monotonic() + 60
    while not any(path.read_text().count("\n") > 1 for path in folder.glob(metrics)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    shown, told = process.communicate(timeout=30)
    assert "Traceback" not in told
    return process.returncode, shown


def test_sigterm_ends_the_run_with_a_checkpoint_and_says_so(tmp_path):
    metrics = "outputs/runs/*/metrics.jsonl"
    status, shown = stopped(tmp_path, metrics, signal.SIGTERM, "total_steps=100000000")
    assert status == 75
    assert "interrupted" in shown
    (summary,) = tmp_path.glob("outputs/runs/*/summary.json")
    assert json.loads(summary.read_text())["status"] == "interrupted"


def test_two_starts_in_one_second_do_not_share_a_folder(tmp_path):
    words = ["network=tiny", "total_steps=1024", "tracking=local",
             "hydra.run.dir=${unused_dir:outputs/runs/same}"]  # fmt: skip
    started = [start(tmp_path, *words) for _ in range(2)]
    assert [process.wait(timeout=60) for process in started] == [0, 0]
    assert {p.name for p in (tmp_path / "outputs" / "runs").iterdir()} == {"same", "same-2"}


def test_help_lists_the_groups_and_trains_nothing(tmp_path):
    done = ppo_lab(tmp_path, "--help")
    assert done.returncode == 0
    assert "co_resident" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_is_not_written_into(run, tmp_path):
    path, _ = run
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    done = ppo_lab(tmp_path, *QUICK, "seed=7", f"hydra.run.dir={path}")
    assert done.returncode == 2
    assert "holds a run already" in done.stderr
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_ctrl_c_in_a_grid_shows_what_there_is(tmp_path):
    jobs = "total_steps=2048,100000000"
    status, shown = stopped(tmp_path, "outputs/grids/*/1/metrics.jsonl", signal.SIGINT, jobs, "-m")
    assert status == 75
    assert "finished" in shown
    assert "interrupted" in shown


def test_outputs_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "outputs").write_text("a file")
    done = ppo_lab(tmp_path, *QUICK)
    assert done.returncode == 2
    assert "must be a folder" in done.stderr


def test_another_environment_does_not_inherit_the_score_range():
    register()
    (job,) = check_jobs(["env.id=Acrobot-v1"])
    assert job.config.env.score_range() is None
    (job,) = check_jobs(["env=acrobot"])
    assert job.config.env.score_range() is not None
