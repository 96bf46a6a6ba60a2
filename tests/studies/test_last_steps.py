"""What follows a study's trials: no step of it can cost the study, and the exit status tells."""

import csv
import signal

import pytest
import yaml

from ppo_lab.config.compose import check_jobs
from ppo_lab.studies import command
from ppo_lab.studies.scheduler import Ending
from ppo_lab.utils.errors import ConfigError
from tests.helpers.commands import ppo_lab
from tests.helpers.engine import FormulaPool, commanded, ended
from tests.helpers.studies import plan_of, quick, trials_of

FEW = ("study.num_trials=2", "study.num_reports=1", "tracking.terminal=none")


@pytest.fixture
def make_plan(tmp_path, monkeypatch):
    """Makes the plan of the quick study with other overrides, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: plan_of(*FEW, *overrides)


def test_a_users_own_environment_has_its_id_in_the_best_config(make_plan, capsys):
    plan = make_plan("env=gymnasium", "env.id=CartPole-v1", "lr=3e-3")
    assert ended(plan, FormulaPool()) == (Ending.complete, 0)
    best = yaml.safe_load((plan.folder / "best.yaml").read_text())
    assert {"override env": "gymnasium"} in best["defaults"]
    assert best["env"]["id"] == "CartPole-v1"
    assert best["lr"] == 3e-3
    assert "run best " in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--config-dir", "hydra.searchpath"])
def test_the_users_own_options_are_kept_beside_the_best_config(tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "mine" / "network" / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("defaults: [schema/mlp@_here_, _self_]\nhidden: [7]\n")
    command = quick(*FEW, "network=own")
    if option == "--config-dir":
        assert commanded(monkeypatch, *command, config_dir="mine") == 0
    else:
        assert commanded(monkeypatch, f"hydra.searchpath=[file://{tmp_path}/mine]", *command) == 0
    own.unlink()
    folder = "outputs/studies/quick"
    (job,) = check_jobs([], is_multirun=False, config_dir=folder, config_name="best")
    assert job.config.network.hidden == [7]


def test_a_file_that_cannot_be_written_costs_that_file_and_the_exit_status(make_plan, capsys):
    plan = make_plan()
    (plan.folder / "trials.csv").mkdir(parents=True)
    assert ended(plan, FormulaPool()) == (Ending.complete, 1)
    shown = capsys.readouterr()
    (line,) = (line for line in shown.err.splitlines() if "trials.csv" in line)
    assert line.startswith("ppo_lab: trials.csv failed: IsADirectoryError: ")
    assert "study quick: 2 of 2 trials" in shown.out
    for name in ("space.yaml", "importance.json", "best.yaml"):
        assert (plan.folder / name).is_file()


STEPS = ["_confirm", "importances", "read_study", "study_panel", "track_study"]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_raises_is_a_line_and_the_others_are_taken(
    make_plan, monkeypatch, capsys, step
):
    def fail(*_):
        raise KeyError("a mistake\nof many lines")

    monkeypatch.setattr(command, step, fail)
    plan = make_plan("study.confirm={top:1,seeds:2}" if step == "_confirm" else "gamma=0.98")
    assert ended(plan, FormulaPool()) == (Ending.complete, 1)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "failed" in line)
    assert "KeyError" in line
    assert "Traceback" in (plan.folder / "log").read_text()
    assert (plan.folder / "best.yaml").is_file() == (step != "read_study")
    assert not list(plan.folder.glob("parents/*.lock"))  # the lease has ended as well


def test_a_study_without_a_trial_that_ran_exits_1(make_plan):
    plan = make_plan("study.max_retries=0")
    pool = FormulaPool(lambda *_: "failed")
    assert ended(plan, pool) == (Ending.complete, 1)
    assert ended(plan, pool) == (Ending.complete, 1)  # and when it is shown again
    mixed = make_plan("study.max_retries=0", "study.name=mixed")
    pool = FormulaPool(lambda config, _: "failed" if config.epsilon == 0.2 else 1.0)
    assert ended(mixed, pool) == (Ending.complete, 0)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_the_exit_status_of_the_study(make_plan, capsys, number, status):
    class Signalled(FormulaPool):
        def start(self, task):
            signal.raise_signal(number)
            return super().start(task)

    plan = make_plan()
    assert ended(plan, Signalled(max_running=1)) == (Ending.interrupted, status)
    assert "study quick: 1 of 2 trials" in capsys.readouterr().out  # its result was there
    for name in ("best.yaml", "trials.csv", "space.yaml", "importance.json"):
        assert (plan.folder / name).is_file()


def test_a_point_that_comes_again_runs_with_seeds_of_its_own(make_plan, tmp_path):
    # Two points and six trials of two seeds. The first trial is the defaults: 0.2.
    overrides = ("epsilon=choice(0.1,0.2)", "study.num_seeds=2", "seed=5", "study/pruner=none",
                 "study.enqueue=[{epsilon:0.2},{epsilon:0.1},{epsilon:0.2}]",
                 "study.confirm={top:2,seeds:2}")  # fmt: skip
    plan = make_plan(*overrides, "study.num_trials=3")
    assert ended(plan, FormulaPool())[1] == 0
    pool = FormulaPool()
    assert ended(make_plan(*overrides, "study.num_trials=6"), pool)[1] == 0
    seeds = {
        trial.number: [seed["seed"] for seed in trial.user_attrs["outcome"]["seeds"]]
        for trial in trials_of(tmp_path)
    }
    runs = [(t.params["epsilon"], *seeds[t.number]) for t in trials_of(tmp_path)]
    assert runs[:4] == [(0.2, 5, 6), (0.2, 10005, 10006), (0.1, 5, 6), (0.2, 20005, 20006)]
    assert len(set(runs)) == 6
    fresh = {c.seed for task in pool.tasks if "confirm" in task.output.group for c in task.configs}
    assert fresh <= {7, 8}  # none of the search's
    with (plan.folder / "trials.csv").open() as file:
        assert [row["epsilon"] for row in csv.DictReader(file)][:4] == ["0.2", "0.2", "0.1", "0.2"]


def test_several_values_are_a_choice_with_or_without_m(tmp_path, monkeypatch):
    # ``commanded`` is a command with -m; trial 0 is the defaults, epsilon 0.2.
    monkeypatch.chdir(tmp_path)
    few = ("epsilon=0.1,0.2", "study.num_trials=4", "study.num_seeds=1", "study/pruner=none")
    assert commanded(monkeypatch, *quick(*few)) == 0
    runs = [
        (trial.params["epsilon"], trial.user_attrs["outcome"]["seeds"][0]["seed"])
        for trial in trials_of(tmp_path)
    ]
    assert runs[0] == (0.2, 1)
    assert len(set(runs)) == 4
    assert {epsilon for epsilon, _ in runs} == {0.1, 0.2}


def test_a_sweep_without_a_space_is_named_by_its_file(tmp_path):
    (tmp_path / "sweeps").mkdir()
    file = tmp_path / "sweeps" / "own.yaml"
    file.write_text("defaults:\n  - override /study: default\nstudy:\n  space:\n")
    done = ppo_lab(tmp_path, "--config-dir", ".", "sweep=own")
    assert done.returncode == 2
    assert done.stderr == f"ppo_lab: study.space in {file}: must have a value\n"


def test_an_attempt_after_a_crash_has_the_seeds_of_the_first(make_plan):
    plan = make_plan("epsilon=choice(0.2,0.3)", "study.enqueue=[{epsilon:0.2}]")

    class CrashesOnce(FormulaPool):
        def _leave(self, task, *rest):
            if len(self.tasks) != 2:
                super()._leave(task, *rest)

    pool = CrashesOnce(max_running=1)
    assert ended(plan, pool) == (Ending.complete, 0)
    runs = [(task.number, task.configs[0].seed) for task in pool.tasks]
    assert runs == [(0, 1), (1, 10001), (1, 10001)]


def test_trials_that_the_storage_has_lost_are_not_run_over(make_plan):
    plan = make_plan()
    ended(plan, FormulaPool())
    best = (plan.folder / "best.yaml").read_bytes()
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"")):
        damage(plan.folder / "study.db")
        with pytest.raises(ConfigError, match=r"study.name=quick: .*bring the storage back"):
            ended(plan, FormulaPool())
    assert (plan.folder / "best.yaml").read_bytes() == best


def test_a_damaged_storage_is_refused_in_the_databases_words(make_plan):
    plan = make_plan()
    ended(plan, FormulaPool())
    (plan.folder / "study.db").write_bytes(b"no database at all" * 999)
    with pytest.raises(ConfigError, match=r"study.storage=.*study.db .*file is not a database"):
        ended(plan, FormulaPool())


@pytest.mark.parametrize("name", ["", "log", "lock", "parents"])
def test_a_folder_that_cannot_be_used_is_refused(make_plan, name):
    plan = make_plan()
    blocked = plan.folder / name
    blocked.parent.mkdir(parents=True)
    if name in ("", "parents"):
        blocked.write_text("a file where a folder should be")
    else:
        blocked.mkdir()
    with pytest.raises(ConfigError, match=r"study.name=quick: its folder outputs/studies/quick "):
        ended(plan, FormulaPool())
