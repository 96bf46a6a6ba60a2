"""Hydra's launchers: grids go through them, studies do not."""

import importlib.util
import json

import pytest

from tests.helpers.commands import ppo_lab

HAS_SUBMITIT = importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is not None


@pytest.mark.skipif(not HAS_SUBMITIT, reason="needs the extra slurm: hydra-submitit-launcher")
def test_the_jobs_of_a_grid_run_under_submitit_in_one_folder(tmp_path):
    # What a job is given there is pickled, and it composes its config anew: as on Slurm.
    done = ppo_lab(
        tmp_path, "-m", "hydra/launcher=submitit_local", "total_steps=1024", "epsilon=0.1,none",
        "tracking=local", "network=tiny", OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (grid,) = (tmp_path / "outputs" / "grids").iterdir()
    summaries = [json.loads((grid / job / "summary.json").read_text()) for job in ("0", "1")]
    assert [summary["clipped"] for summary in summaries] == [True, False]
    assert "all 2 jobs finished" in done.stdout


@pytest.mark.skipif(not HAS_SUBMITIT, reason="needs the extra slurm: hydra-submitit-launcher")
@pytest.mark.parametrize("launcher", ["submitit_local", "submitit_slurm"])
def test_a_study_refuses_a_launcher_and_says_how_to_use_several_machines(tmp_path, launcher):
    done = ppo_lab(tmp_path, "sweep=epsilon", f"hydra/launcher={launcher}")
    assert done.returncode == 2
    assert f"hydra/launcher={launcher}" in done.stderr
    assert "once on each machine, with study.storage=postgresql://" in done.stderr
    assert not (tmp_path / "outputs").exists()
