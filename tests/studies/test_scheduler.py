"""Studies from their plan to their files, without training: every sampler, every pruner."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from ppo_lab.studies.scheduler import Ending
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.paths import CONF_DIR
from tests.helpers.engine import FormulaPool, carried, learn
from tests.helpers.studies import plan_of, trials_of

SAMPLERS = [path.stem for path in sorted((CONF_DIR / "study" / "sampler").glob("*.yaml"))]
PRUNERS = [path.stem for path in sorted((CONF_DIR / "study" / "pruner").glob("*.yaml"))]
SPACE = (
    "epsilon=tag(log,interval(0.05,0.5))", "num_epochs=interval(2,12)", "gamma=choice(0.9,0.99)",
    "study.num_reports=2", "tracking.terminal=none",
)  # fmt: skip
GRID = (*SPACE[3:], "epsilon=choice(0.1,0.2,0.3)", "num_epochs=range(8,11)")
OPTIONS = {
    "cmaes": ("study.sampler.n_startup_trials=3",),
    "gp": ("study.sampler.n_startup_trials=3",),
    "nsga2": ("study.sampler.population_size=3",),
    "tpe": ("study.sampler.n_startup_trials=3",),
}
"""The samplers begin to search within a test's few trials."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Carries a study to its end in a folder of its own; returns its trials."""
    monkeypatch.chdir(tmp_path)

    def run(plan, num_trials, formula=learn):
        study = dataclasses.replace(plan.study, num_trials=num_trials)
        plan = dataclasses.replace(plan, study=study)
        assert carried(plan, FormulaPool(formula)) is Ending.complete
        return trials_of(tmp_path, study=plan.name)

    return run


def left(name):
    return Path("outputs", "studies", "quick", name)


@pytest.mark.filterwarnings("ignore:Constraints have been set, but CmaEsSampler")
@pytest.mark.filterwarnings("error::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_carries_a_study_to_its_end_and_on(run, name):
    plan = plan_of(*(GRID if name == "grid" else SPACE), *OPTIONS.get(name, ()),
                   "study.num_seeds=2", f"study/sampler={name}",
                   'study.constraints=["env_steps_per_s <= 10000"]')  # fmt: skip
    total = 12 if name == "random" else 7  # once enough for the importance of parameters
    run(plan, 5)
    trials = run(plan, total)
    assert [trial.number for trial in trials] == list(range(total))
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    first, then = (
        {tuple(trial.params.items()) for trial in part} for part in (trials[1:5], trials[5:])
    )
    assert not first & then or name == "nsga2"  # whose children may be their parents
    assert len(first) > 2
    rows = list(csv.DictReader(left("trials.csv").open()))
    assert len(rows) == total
    best = max((row for row in rows if row["outcome"] == "kept"),
               key=lambda row: float(row["final_return"]))  # fmt: skip
    written = yaml.safe_load(left("best.yaml").read_text())
    assert float(best["epsilon"]) == written.get("epsilon", 0.2)  # 0.2 is the task's own
    (shares,) = json.loads(left("importance.json").read_text()).values()
    assert (shares is None) is (total == 7)


@pytest.mark.parametrize("name", sorted({*PRUNERS} - {"none"}))
def test_every_pruner_carries_a_study_to_its_end(run, name):
    patience = ["study.pruner.patience=2"] if name == "patient" else []
    plan = plan_of(*SPACE, f"study/pruner={name}", "study/sampler=random", "study.num_reports=6",
                   "study.num_seeds=2", "study.prune_confidence=0.7", *patience)  # fmt: skip

    def formula(config, share):
        # Best at once, and worse from then on: the patient rule prunes, too.
        return -abs(config.epsilon - 0.2) - 0.01 * share + 1e-3 * (config.seed % 2)

    trials = run(plan, 8, formula)
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert len(complete) + len(pruned) == 8
    assert complete[0].number == 0  # the defaults, and the best there is
    assert pruned
    for trial in pruned:
        reason = trial.user_attrs["outcome"]["reason"]
        assert reason == f"behind other trials after {trial.last_step:,} steps"


def test_a_grid_is_walked_to_its_end_beside_starts_of_its_own(run):
    # 3 x 3 points, the defaults (0.2 and 10) and a start among them; more trials are not wanted.
    plan = plan_of(*GRID, "study/sampler=grid", "study/pruner=none",
                   "study.enqueue=[{epsilon: 0.1, num_epochs: 8}]")  # fmt: skip
    assert plan.study.num_trials == 9
    trials = run(plan, 9)
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    roles = [trial.user_attrs.get("role") for trial in trials]
    assert roles == ["baseline", "start"] + [None] * 7
    assert len({tuple(trial.params.items()) for trial in trials}) == 9


def test_several_objectives_come_to_a_front(run):
    plan = plan_of("epsilon=interval(0.05,0.5)", "num_envs=choice(4,8,16)",
                   "study.objective=[final_return,env_steps_per_s]", "study/sampler=nsga2",
                   "study.sampler.population_size=3", "study/pruner=none",
                   "tracking.terminal=none")  # fmt: skip
    trials = run(plan, 7)
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    complete = [trial.values for trial in trials if trial.state.name == "COMPLETE"]
    best = yaml.safe_load(left("best.yaml").read_text())  # of the front, the best return
    most = max(complete)
    assert most[1] == 1000.0 * best.get("num_envs", 8)


def test_defaults_out_of_memory_are_no_obstacle_to_a_confirmed_winner(run, capsys):
    plan = plan_of("epsilon=interval(0.05,0.3)", "num_envs=choice(4,8)", "study.num_reports=3",
                   "study.confirm={top: 2, seeds: 3}", "tracking.terminal=none")  # fmt: skip

    def formula(config, share):
        return "out_of_memory" if config.num_envs == 8 else learn(config, share)

    trials = run(plan, 6, formula)
    assert trials[0].state.name == "PRUNED"
    assert trials[0].user_attrs["outcome"]["status"] == "out_of_memory"
    told = json.loads(left("confirm.json").read_text())
    assert told["trials_searched"] == 6
    assert told["default"]["status"] == "OOM"
    assert told["winner"]["params"]["num_envs"] == 4
    assert yaml.safe_load(left("best.yaml").read_text())["num_envs"] == 4
    assert "the defaults are not eligible (OOM)" in capsys.readouterr().out


def test_a_search_that_goes_on_and_is_stopped_has_no_confirmation_of_before(run, monkeypatch):
    plan = plan_of("epsilon=interval(0.05,0.3)", "study.num_reports=2", "tracking.terminal=none",
                   "study.confirm={top: 1, seeds: 2}")  # fmt: skip
    run(plan, 3)
    assert json.loads(left("confirm.json").read_text())["trials_searched"] == 3

    class StopsInTheMiddle(FormulaPool):
        def start(self, task):
            slot = super().start(task)
            left("STOP").touch()
            return slot

    more = dataclasses.replace(plan, study=dataclasses.replace(plan.study, num_trials=5))
    assert carried(more, StopsInTheMiddle()) is Ending.stopped
    assert not left("confirm.json").exists()
    assert yaml.safe_load(left("best.yaml").read_text())
    with pytest.raises(ConfigError, match="remove the file"):
        carried(more, FormulaPool())
    left("STOP").unlink()
    pool = FormulaPool()
    assert carried(more, pool) is Ending.complete
    assert json.loads(left("confirm.json").read_text())["trials_searched"] == 5
    again = [task.output.run_id for task in pool.tasks if "confirm" in task.output.group]
    # The defaults and the winner of before have their fresh runs already.
    assert len(again) <= 1
