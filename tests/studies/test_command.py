"""Studies as a person runs them: started, stopped, killed, started again."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks.kill_study import kill_study, processes_of
from ppo_lab.tracking import read_metrics, read_summary
from tests.helpers.commands import start_into
from tests.helpers.engine import commanded
from tests.helpers.studies import left_by, quick, started, trials_of

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="counts processes in /proc")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four trials of two seeds."""
    folder = tmp_path_factory.mktemp("study")
    shown = left_by(started(folder, "study.num_trials=4", "study.num_seeds=2", "seed=5"))
    return folder, shown


def test_each_trial_has_a_folder_of_its_number_with_a_run_per_seed(study):
    folder, _ = study
    trials = folder / "outputs" / "studies" / "quick" / "trials"
    assert sorted(path.name for path in trials.iterdir()) == ["0000", "0001", "0002", "0003"]
    for trial in trials.iterdir():
        result = json.loads((trial / "result.json").read_text())
        assert [summary["seed"] for summary in result["summaries"]] == [5, 6]
        for seed in (5, 6):
            summary = read_summary(trial / f"seed_{seed}" / "summary.json")
            assert summary["study"] == "quick"
            assert summary["trial"] == int(trial.name)
            assert read_metrics(trial / f"seed_{seed}" / "metrics.jsonl")
            assert (trial / f"seed_{seed}" / ".hydra" / "config.yaml").is_file()


def test_the_first_trial_is_the_defaults_and_others_are_within_the_space(study):
    folder, _ = study
    trials = trials_of(folder)
    assert trials[0].params == {"epsilon": 0.2}
    assert trials[0].user_attrs["role"] == "baseline"
    assert all(0.05 <= trial.params["epsilon"] <= 0.5 for trial in trials)
    assert not any("role" in trial.user_attrs for trial in trials[1:])


def test_a_complete_trials_value_is_the_mean_of_its_seeds(study):
    folder, _ = study
    for trial in trials_of(folder):
        if trial.state.name != "COMPLETE":
            continue
        path = folder / "outputs" / "studies" / "quick" / "trials" / f"{trial.number:04}"
        first, second = (
            read_summary(path / f"seed_{seed}" / "summary.json")["final_return"] for seed in (5, 6)
        )
        assert trial.value == pytest.approx((first + second) / 2)


def test_another_space_is_refused_with_the_difference(study, monkeypatch, capsys):
    folder, _ = study
    monkeypatch.chdir(folder)
    overrides = ("study.num_seeds=2", "seed=5", "epsilon=interval(0.05,0.9)")
    assert commanded(monkeypatch, *quick(*overrides)) == 2
    assert "interval(0.05,0.5) -> interval(0.05,0.9)" in capsys.readouterr().err
    assert len(trials_of(folder)) == 4


def test_a_larger_total_adds_the_difference(study, monkeypatch):
    folder, _ = study
    monkeypatch.chdir(folder)
    more = ("study.num_trials=5", "study.num_seeds=2", "seed=5")
    assert commanded(monkeypatch, *quick(*more)) == 0
    trials = trials_of(folder)
    assert [trial.number for trial in trials] == [0, 1, 2, 3, 4]
    # Another sampler seed at each start: the first samples are not drawn again.
    assert len({trial.params["epsilon"] for trial in trials}) == 5


def test_killed_trials_and_parents_cost_nothing_but_time(tmp_path):
    outcome = kill_study(
        tmp_path, num_trials=4, num_parent_kills=2, parent_kill_s=(1.0, 4.0),
        trial_kill_s=(2.0, 5.0), seed=3, overrides=("total_steps=8192",), begin=start_into
    )  # fmt: skip
    assert outcome.num_parent_kills == 2, (tmp_path / "shown").read_text()
    assert outcome.is_exact, f"{outcome}\n{(tmp_path / 'shown').read_text()}"


def wait_until(condition, timeout_s=90):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def test_ctrl_c_lets_trials_go_on_and_twice_gives_them_back(tmp_path):
    endless = ("study.num_trials=50", "total_steps=100000000", "compile=never")
    process = started(tmp_path, *endless)
    runs = tmp_path / "outputs" / "studies" / "quick" / "trials"

    def num_rows():
        return sum(path.read_bytes().count(b"\n") for path in runs.glob("*/seed_1/metrics.jsonl"))

    wait_until(lambda: len(list(runs.glob("*/seed_1/metrics.jsonl"))) >= 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers as well
    before = num_rows()
    wait_until(lambda: num_rows() > before + 20)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "0 of 50 trials" in shown
    given_back = trials_of(tmp_path)
    assert [trial.state.name for trial in given_back] == ["RUNNING"] * 2
    assert all(trial.user_attrs["owner"] is None for trial in given_back)
    assert processes_of(process.pid) == {}
