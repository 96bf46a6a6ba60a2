"""``sweep=NAME``: a file of sweeps/ is a command, without -m."""

import json

import pytest

from ppo_lab.config import compose
from ppo_lab.config.compose import check_jobs, register
from ppo_lab.utils import paths
from ppo_lab.utils.errors import ConfigError
from tests.helpers.commands import ppo_lab

SWEEP = """# python -m ppo_lab sweep=two_widths
defaults:
  - override /network: tiny
  - override /tracking: local

total_steps: 1024
hydra:
  sweeper:
    params:
      epsilon: 0.1,none
"""


@pytest.fixture
def own_sweeps(tmp_path, monkeypatch):
    """A shipped folder of sweeps with one file in it."""
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "two_widths.yaml").write_text(SWEEP)
    monkeypatch.setattr(compose, "SWEEPS_DIR", tmp_path / "sweeps")
    register()


def jobs_of(*overrides):
    return check_jobs(overrides)


def test_a_shipped_sweep_is_a_grid_over_its_parameters(own_sweeps):
    jobs = jobs_of("sweep=two_widths")
    assert [job.config.epsilon for job in jobs] == [0.1, None]
    assert {job.config.total_steps for job in jobs} == {1024}
    assert all(job.is_multirun for job in jobs)
    assert jobs[0].overrides == ("epsilon=0.1", "sweep=two_widths")


def test_the_command_line_adds_to_a_sweep_and_wins_over_it(own_sweeps):
    jobs = jobs_of("sweep=two_widths", "seed=1,2,3", "total_steps=2048")
    assert len(jobs) == 6
    assert {job.config.total_steps for job in jobs} == {2048}
    (job,) = jobs_of("sweep=two_widths", "epsilon=0.3")
    assert job.config.epsilon == 0.3


def test_a_value_of_a_sweep_that_no_run_can_have_is_refused_beforehand(own_sweeps):
    with pytest.raises(ConfigError, match="epsilon=-1"):
        jobs_of("sweep=two_widths", "epsilon=0.1,-1")


def test_without_a_sweep_a_command_is_one_run():
    register()
    (job,) = jobs_of()
    assert not job.is_multirun


def test_every_shipped_sweep_composes():
    register()
    for path in paths.SWEEPS_DIR.glob("*.yaml"):
        assert path.stem == "wandb" or jobs_of(f"sweep={path.stem}"), path


def test_ones_own_sweep_runs_from_config_dir_without_m(tmp_path):
    (tmp_path / "mine" / "sweeps").mkdir(parents=True)
    (tmp_path / "mine" / "sweeps" / "two_widths.yaml").write_text(SWEEP)
    done = ppo_lab(tmp_path, "--config-dir", "mine", "sweep=two_widths")
    assert done.returncode == 0, done.stderr
    (grid,) = (tmp_path / "outputs" / "grids").iterdir()
    summaries = [json.loads((grid / str(i) / "summary.json").read_text()) for i in (0, 1)]
    assert [summary["clipped"] for summary in summaries] == [True, False]
    assert (grid / "multirun.yaml").is_file()
