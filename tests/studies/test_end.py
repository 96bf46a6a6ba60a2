"""What a study leaves at its end, and that a person can go on from it."""

import csv
import json
import multiprocessing
import os
import signal

import optuna
import pytest
import yaml
from omegaconf import OmegaConf

from ppo_lab.config import compose
from ppo_lab.config.compose import check_jobs
from ppo_lab.studies.scheduler import Ending
from tests.helpers.commands import ppo_lab
from tests.helpers.engine import FormulaPool, carried, commanded
from tests.helpers.studies import QUICK, left_by, plan_of, started, trials_of

CONFIRMED = ("study.num_trials=3", "study.num_seeds=2", "study.confirm={top:1,seeds:2}")
FIXED = ("num_epochs=2", "lr=tag(log,interval(1e-4,1e-3))")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of epsilon and lr with a confirmation: its working folder and what it showed."""
    folder = tmp_path_factory.mktemp("end")
    shown = left_by(started(folder, *CONFIRMED, *FIXED))
    return folder, shown


def folder_of(study):
    return study[0] / "outputs" / "studies" / "quick"


def test_it_shows_the_result_and_the_commands_to_go_on(study):
    _, shown = study
    assert "study quick: 3 of 3 trials" in shown
    assert "once more over 2 fresh seeds" in shown
    assert "dashboard  optuna-dashboard sqlite:///outputs/studies/quick/study.db" in shown
    command = "python -m ppo_lab --config-dir outputs/studies/quick --config-name best"
    assert f"run best   {command}" in shown


def test_it_makes_a_page_of_the_search_and_the_confirmation(study):
    assert "report     outputs/studies/quick/report.html\n" in study[1]
    text = (folder_of(study) / "report.html").read_text()
    for heading in ("Study quick", "CartPole-v1", "CartPole-v1: confirmation with fresh seeds"):
        assert f"<h2>{heading}</h2>" in text
    assert '"name":"history-quick"' in text


def test_the_table_has_a_row_per_trial_with_parameters_and_folders(study):
    with (folder_of(study) / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["role"] == "baseline"
    assert float(rows[0]["epsilon"]) == 0.2
    assert {row["outcome"] for row in rows} <= {"kept", "pruned"}
    for row in rows:
        assert 1e-4 <= float(row["lr"]) <= 1e-3
        assert float(row["env_steps_per_s"]) > 0
        assert (study[0] / row["folder"] / "result.json").is_file()


def test_the_space_is_kept_as_it_was_searched(study):
    space = yaml.safe_load((folder_of(study) / "space.yaml").read_text())
    assert space["space"] == {"epsilon": "interval(0.05,0.5)", "lr": "tag(log,interval(1e-4,1e-3))"}
    assert space["objectives"] == {"final_return": "maximize"}
    assert "num_epochs=2" in space["overrides"]


def test_importance_waits_for_ten_trials(study):
    assert json.loads((folder_of(study) / "importance.json").read_text()) == {"final_return": None}


def test_confirmation_ran_fresh_seeds_and_decides_what_is_best(study):
    told = json.loads((folder_of(study) / "confirm.json").read_text())
    assert told["seeds"] == [3, 4]
    assert len(told["candidates"]) == 1
    runs = sorted(folder_of(study).glob("confirm/2_seeds-*/trials/*/seed_*"))
    assert [path.relative_to(path.parents[1]).as_posix() for path in runs] == [
        "0000/seed_3", "0000/seed_4", "0001/seed_3", "0001/seed_4"
    ]  # fmt: skip
    best = yaml.safe_load((folder_of(study) / "best.yaml").read_text())
    for key, value in told["winner"]["params"].items():
        default = {"epsilon": 0.2, "lr": 1e-3}[key]  # cartpole's; what equals it is left out
        assert best.get(key, default) == value


def test_the_best_config_is_the_winners_run(study, monkeypatch):
    monkeypatch.chdir(study[0])
    compose.register()
    (job,) = check_jobs(
        [], is_multirun=False, config_dir="outputs/studies/quick", config_name="best"
    )
    told = json.loads((folder_of(study) / "confirm.json").read_text())["winner"]["params"]
    (saved,) = folder_of(study).glob("confirm/2_seeds-*/trials")
    candidates = [
        yaml.safe_load((t / "seed_3/.hydra/config.yaml").read_text()) for t in saved.iterdir()
    ]
    (ran,) = [run for run in candidates if all(run[key] == told[key] for key in told)]
    ours = yaml.safe_load(OmegaConf.to_yaml(OmegaConf.structured(job.config)))
    ran["tracking"]["terminal"] = ours["tracking"]["terminal"]  # a trial shows no line of its own
    assert ours | {"seed": None} == ran | {"seed": None}


def test_the_best_config_runs(study):
    best = ("--config-dir", "outputs/studies/quick", "--config-name", "best")
    done = ppo_lab(study[0], *best, "total_steps=1024")
    assert done.returncode == 0, done.stderr


def test_a_finished_study_prints_its_result_and_runs_nothing(study, monkeypatch, capsys):
    trials = sorted(folder_of(study).rglob("result.json"))
    before = [path.stat().st_mtime_ns for path in trials]
    monkeypatch.chdir(study[0])
    assert commanded(monkeypatch, *QUICK, *CONFIRMED, *FIXED) == 0
    shown = capsys.readouterr()
    assert "study quick: 3 of 3 trials" in shown.out
    assert "once more over 2 fresh seeds" in shown.out
    assert "begins" not in shown.err
    assert sorted(folder_of(study).rglob("result.json")) == trials
    assert [path.stat().st_mtime_ns for path in trials] == before


def carry_until_killed(plan):
    """Run a study whose machine goes down when the first trial of its confirmation starts."""

    class Killed(FormulaPool):
        def start(self, task):
            slot = super().start(task)
            if "confirm" in task.output.group:
                os.kill(os.getpid(), signal.SIGKILL)
            return slot

    carried(plan, Killed(max_running=1))


def test_a_confirmation_killed_in_the_middle_goes_on_with_the_same_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ("study.confirm={top:1,seeds:2}", "study.enqueue=[{epsilon: 0.15}]")
    plan = plan_of("study.num_trials=2", *overrides)
    process = multiprocessing.get_context("fork").Process(target=carry_until_killed, args=(plan,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (plan.folder / "confirm.json").exists()
    assert carried(plan, FormulaPool()) is Ending.complete
    url = plan.url.render_as_string()
    search = trials_of(tmp_path)
    names = optuna.get_all_study_names(url)
    (confirmation,) = [name for name in names if name.startswith("quick.confirm-2-")]
    fresh = trials_of(tmp_path, study=confirmation)
    assert {trial.user_attrs["attempt"] for trial in search} == {1}
    assert [trial.state.is_finished() for trial in search] == [True] * 2
    assert [trial.state.is_finished() for trial in fresh] == [True] * len(fresh)
    assert fresh[0].user_attrs["attempt"] == 2
    assert (plan.folder / "confirm.json").is_file()
