"""The table of a grid is made from its list of jobs, whatever is in its folders."""

import json

from ppo_lab.config.compose import Job, check_jobs, register
from ppo_lab.grids.results import grid_summaries
from ppo_lab.grids.start import Jobs
from ppo_lab.tracking.tables import override_values, varying_keys


def jobs_of(*overrides) -> list[Job]:
    register()
    return check_jobs(overrides, is_multirun=True)


def test_every_job_has_a_row_also_one_that_died_or_never_began(tmp_path):
    jobs = jobs_of("seed=1,2,3", "gamma=0.9", "hydra.sweep.subdir=s${seed}")
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1" / "summary.json").write_text(json.dumps({"status": "finished"}))
    (tmp_path / "s2").mkdir()  # killed before it wrote anything
    (tmp_path / "stray").mkdir()
    rows = grid_summaries(tmp_path, jobs)
    assert [row["status"] for row in rows] == ["finished", "died", "not started"]
    assert [row["seed"] for row in rows] == [1, 2, 3]
    # gamma is the same in all rows: it is no column.
    assert varying_keys([override_values(row) for row in rows]) == ["seed"]


def test_jobs_are_launched_in_runs_of_consecutive_numbers():
    jobs = Jobs((number, (f"seed={number}",)) for number in (0, 1, 4, 5, 6))
    first = [["seed=0"], ["seed=1"]]
    assert jobs.batches(None) == [(0, first), (4, [["seed=4"], ["seed=5"], ["seed=6"]])]
    assert jobs.batches(2) == [(0, first), (4, [["seed=4"], ["seed=5"]]), (6, [["seed=6"]])]
    assert Jobs().batches(None) == []


def test_a_large_grid_tells_how_far_it_is_checked_and_reads_files_once(monkeypatch):
    from ppo_lab.config import composer
    from ppo_lab.config.compose import check_command
    from ppo_lab.config.composer import open_hydra

    register()
    read, told = [], []
    monkeypatch.setattr(
        composer.ConfigLoaderImpl, "load_sweep_config",
        lambda *arguments, real=composer.ConfigLoaderImpl.load_sweep_config: (
            read.append(1), real(*arguments)
        )[1],
    )  # fmt: skip
    with open_hydra() as hydra:
        command = check_command(
            hydra, ["seed=range(0,50)", "gamma=0.9,0.95"], is_multirun=True,
            progress=lambda *counts: told.append(counts),
        )  # fmt: skip
    assert [job.subdir for job in command.jobs] == [str(number) for number in range(100)]
    assert [job.config.seed for job in command.jobs] == [n for n in range(50) for _ in (0, 1)]
    assert {job.config.gamma for job in command.jobs} == {0.9, 0.95}
    assert len(read) == 1
    assert told == [(number, 100) for number in range(1, 101)]


def test_jobs_whose_values_follow_from_others_are_composed_one_by_one():
    jobs = jobs_of("seed=${hydra:job.num}", "epsilon=0.1,0.2", "epsilon_high=${epsilon}")
    assert [(job.config.seed, job.config.epsilon_high) for job in jobs] == [(0, 0.1), (1, 0.2)]
