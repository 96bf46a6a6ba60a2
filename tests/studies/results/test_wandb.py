"""A study in W&B, recorded offline and read back with W&B's own reader."""

import os

import pytest

from tests.helpers.studies import left_by, started
from tests.helpers.wandb_processes import inspect, of_kind, summary_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The W&B runs of a study of two trials with two seeds, by id; one trial diverges."""
    folder = tmp_path_factory.mktemp("wandb")
    # A step size of 1e30 overflows in its first update: the trial ends with NaN.
    shown = left_by(
        started(
            folder, "study.num_trials=2", "study.num_seeds=2", "tracking=wandb",
            "tracking.mode=offline", "study.name=lr+wide", "epsilon=0.2",
            "lr=choice(1e-3,1e30)", "study.enqueue=[{lr:1e30}]", WANDB_MODE="offline",
            HOME=str(folder), NETRC=os.devnull,
        )
    )  # fmt: skip
    found = {}
    for path in (folder / "outputs" / "wandb").glob("offline-run-*"):
        records = inspect(path)
        begun = of_kind(records, "run")[0]  # a second one adds tags
        found[begun["run_id"]] = records
    return found, shown


def test_every_seed_is_a_run_named_after_study_trial_and_seed(runs):
    ids = sorted(runs[0])
    stem = ids[0].rsplit("-", 2)[0]
    assert stem.startswith("lr-wide-")  # and four letters of the study's own
    assert ids == [f"{stem}-{end}" for end in ("0000-s1", "0000-s2", "0001-s1", "0001-s2", "study")]


def test_the_runs_of_a_study_are_one_group_with_their_kind_and_number(runs):
    for run_id, records in runs[0].items():
        begun = of_kind(records, "run")[0]  # a second one adds tags
        assert begun["run_group"] == "lr+wide"
        is_study = run_id.endswith("study")
        assert begun["job_type"] == ("study" if is_study else "trial")
        if not is_study:
            assert summary_of(records)["trial"] == int(run_id.split("-")[-2])


def test_a_trials_fate_is_in_its_summary_and_its_tags(runs):
    for run_id, records in runs[0].items():
        if run_id.endswith("study"):
            continue
        status = "diverged" if "-0001-" in run_id else "finished"
        assert summary_of(records)["status"] == status
        tags = of_kind(records, "run")[-1]["tags"]
        assert ("diverged" in tags) == (status == "diverged")


def test_the_study_has_a_run_of_its_own_with_the_table_of_trials(runs):
    found, shown = runs
    (study,) = (records for run_id, records in found.items() if run_id.endswith("study"))
    summary = summary_of(study)
    assert summary.get("trials._type") == "table-file", (summary, shown)
    assert summary["trials.nrows"] == 2
    assert summary["trials_by_outcome"] == {"kept": 1, "diverged": 1}
    assert summary["best"]["trial"] == 0
    assert "W&B        wandb sync" in shown
