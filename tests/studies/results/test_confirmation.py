"""Confirmation: which trials run again, on which seeds, and what is read from them."""

import json
import re
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy.engine import make_url

from ppo_lab.config.study import Aggregate
from ppo_lab.studies.definition.objective import parse_objectives
from ppo_lab.studies.display.progress import StudyProgress
from ppo_lab.studies.results.confirmation import confirmation_plan, read_confirmation
from ppo_lab.studies.scheduler import Ending, InterruptHandler, StudyScheduler
from ppo_lab.studies.store.database import Database
from ppo_lab.studies.store.lease import Lease
from ppo_lab.studies.store.retry import RetryPolicy
from ppo_lab.studies.store.trial_store import TrialStore
from ppo_lab.utils.errors import ConfigError
from tests.helpers.engine import FormulaPool, tables
from tests.helpers.spaces import make_space
from tests.helpers.studies import plan_of


@pytest.fixture(scope="module")
def made():
    confirmed = "study.confirm={top:2,seeds:4}"
    return plan_of("study.name=search", "study.num_seeds=3", "seed=5", confirmed)


@pytest.fixture
def plan(made, tmp_path):
    """A search over epsilon with seeds 5, 6 and 7, whose best two run again with four seeds."""
    return replace(made, folder=tmp_path, url=make_url(f"sqlite:///{tmp_path / 'study.db'}"))


@pytest.fixture
def database(plan):
    (plan.folder / "study.db").write_bytes(tables())
    database = Database(plan.url, plan.folder)
    yield database
    database.close()


def make_study(database, name):
    return optuna.create_study(study_name=name, storage=database.storage, direction="maximize")


def add(study, epsilon, returns, *, role="search", status="finished", constraints=None):
    """Add a trial as ``TrialStore`` does; ``returns`` are its seeds'."""
    study.enqueue_trial({"epsilon": epsilon} if epsilon else {}, user_attrs={"role": role})
    trial = study.ask()
    if epsilon:
        trial.suggest_float("epsilon", 0.05, 0.5)
    for name, violation in (constraints or {}).items():
        trial.set_constraint(name, violation)
    is_well = status == "finished"
    value = sum(returns) / len(returns) if is_well else None
    seeds = [{"final_return": value} for value in returns]
    outcome = {"status": status, "seeds": seeds, "values": [value] if value else None}
    trial.set_user_attr("outcome", outcome)
    state = TrialState.COMPLETE if is_well else TrialState.PRUNED
    if is_well and not epsilon:  # a baseline outside the space
        value, state = None, TrialState.FAIL
    study.tell(trial, value, state)


@pytest.fixture
def search(database):
    """Trials 0 to 5: the defaults (0.2), 0.1 twice, the best over its limit, 0.3, one pruned."""
    study = make_study(database, "search")
    add(study, 0.2, [200.0], role="baseline")
    add(study, 0.1, [150.0])
    add(study, 0.1, [140.0])
    add(study, 0.4, [900.0], constraints={"peak_vram_gib<=8": 1.0})
    add(study, 0.3, [100.0])
    add(study, 0.05, [50.0], status="pruned")
    return study


def confirmed(plan, search, database, *others, default=(200.0, 200.0, 210.0, 190.0)):
    fresh = make_study(database, "fresh")
    add(fresh, 0.2, default, role="baseline")
    for epsilon, returns in others:
        add(fresh, epsilon, returns, role="start")
    confirming = confirmation_plan(plan, search, database)
    return read_confirmation(plan, search, confirming, fresh)


def test_the_best_settings_run_again_beside_the_defaults(plan, search, database):
    # Not the defaults a second time, no setting twice, nothing beyond a limit, nothing pruned.
    again = confirmation_plan(plan, search, database)
    assert again.starts == ({"epsilon": 0.2}, {"epsilon": 0.1}, {"epsilon": 0.3})
    assert again.study.num_trials == 3
    assert re.fullmatch(r"search\.confirm-4-[0-9a-f]{4}", again.name)
    assert again.folder.parent == plan.folder / "confirm"
    assert again.folder.name.startswith("4_seeds-")


def test_its_seeds_are_those_after_the_searchs(plan, search, database):
    again = confirmation_plan(plan, search, database)
    assert [config.seed for config in plan.trial_configs({"epsilon": 0.1})] == [5, 6, 7]
    configs = again.trial_configs({"epsilon": 0.1})
    assert [config.seed for config in configs] == [8, 9, 10, 11]
    assert {config.epsilon for config in configs} == {0.1}


def test_it_prunes_nothing_and_is_not_itself_confirmed(plan, search, database):
    again = confirmation_plan(plan, search, database)
    assert again.study.pruner == {"_target_": "optuna.pruners.NopPruner"}
    assert confirmation_plan(again, search, database) is None


def test_the_studys_own_stop_file_stops_its_confirmation_too(plan, search, database):
    again = confirmation_plan(plan, search, database)
    assert again.confirms == plan.folder
    (plan.folder / "STOP").touch()
    policy, interrupts = RetryPolicy(1.0), InterruptHandler()
    store = TrialStore(again, database, lease := Lease(database, 60.0))
    display = StudyProgress(again.objectives)
    parent = StudyScheduler(store, pool := FormulaPool(), policy, interrupts, display)
    assert parent.run() is Ending.stopped
    assert pool.tasks == []
    assert store.counts().finished == 0
    lease.close()


def test_a_study_without_a_good_trial_has_nothing_to_confirm(plan, database):
    study = make_study(database, "search")
    add(study, 0.2, [200.0], role="baseline")
    add(study, 0.1, [50.0], status="diverged")
    assert confirmation_plan(plan, study, database) is None


def test_settings_that_have_run_stay_when_the_search_goes_on(plan, search, database):
    fresh = make_study(database, confirmation_plan(plan, search, database).name)
    for role, epsilon in (("baseline", 0.2), ("start", 0.1), ("start", 0.3)):
        fresh.enqueue_trial({"epsilon": epsilon}, user_attrs={"role": role})
    add(search, 0.45, [500.0])
    again = confirmation_plan(plan, search, database)
    assert [start["epsilon"] for start in again.starts] == [0.2, 0.1, 0.3, 0.45]
    assert again.study.num_trials == 4


def test_a_search_that_was_allowed_to_change_is_confirmed_anew(plan, search, database):
    before = confirmation_plan(plan, search, database)
    changed = replace(plan.study, num_seeds=2)
    after = confirmation_plan(replace(plan, study=changed), search, database)
    # The first seeds of the confirmation would be others: 7 instead of 8.
    assert [p.trial_configs({})[0].seed for p in (before, after)] == [8, 7]
    assert before.name != after.name
    assert before.folder != after.folder


def test_the_winner_is_chosen_on_the_fresh_seeds_alone(plan, search, database):
    # In the search 0.1 was better than 0.3.
    worse, better = [205.0, 195.0, 200.0, 204.0], [300.0, 310.0, 290.0, 300.0]
    result = confirmed(plan, search, database, (0.1, worse), (0.3, better))
    assert result.seeds == (8, 9, 10, 11)
    assert result.winner.fresh.params == {"epsilon": 0.3}
    assert (result.winner.number, result.winner.found.values) == (4, (100.0,))
    assert result.winner.fresh.values == (300.0,)
    assert result.winner.gain.mean == pytest.approx(100.0)
    assert result.winner.gain.low > 0
    assert [candidate.number for candidate in result.candidates] == [4, 1]
    assert result.default.gain is None


def test_the_defaults_win_where_nothing_is_better(plan, search, database):
    result = confirmed(plan, search, database, (0.1, [190.0, 195.0, 180.0, 200.0]))
    assert result.winner is result.default
    assert result.candidates[0].gain.mean < 0


def test_a_candidate_that_broke_down_on_a_fresh_seed_cannot_win(plan, search, database):
    fresh = make_study(database, "fresh")
    add(fresh, 0.2, [200.0, 210.0], role="baseline")
    add(fresh, 0.1, [900.0, 900.0], role="start", status="diverged")
    confirming = confirmation_plan(plan, search, database)
    result = read_confirmation(plan, search, confirming, fresh)
    assert result.winner is result.default
    assert (result.candidates[0].fresh.label, result.candidates[0].gain) == ("diverged", None)


def test_a_baseline_outside_the_space_is_compared_with_too(plan, search, database):
    fresh = make_study(database, "fresh")
    add(fresh, None, [200.0, 210.0], role="baseline")
    add(fresh, 0.1, [300.0, 310.0], role="start")
    result = read_confirmation(plan, search, confirmation_plan(plan, search, database), fresh)
    assert result.default.fresh.values == (205.0,)
    assert result.winner.gain.mean == pytest.approx(100.0)


def test_where_the_defaults_break_down_the_best_candidate_wins(plan, search, database):
    fresh = make_study(database, "fresh")
    add(fresh, 0.2, [0.0, 0.0], role="baseline", status="diverged")
    add(fresh, 0.1, [10.0, 12.0], role="start")
    add(fresh, 0.3, [20.0, 22.0], role="start")
    result = read_confirmation(plan, search, confirmation_plan(plan, search, database), fresh)
    assert result.winner.fresh.params == {"epsilon": 0.3}
    assert result.winner.gain is None


def test_where_nothing_runs_well_nobody_wins(plan, search, database):
    fresh = make_study(database, "fresh")
    add(fresh, 0.2, [0.0, 0.0], role="baseline", status="out_of_memory")
    add(fresh, 0.1, [10.0, 12.0], role="start", status="over_budget")
    result = read_confirmation(plan, search, confirmation_plan(plan, search, database), fresh)
    assert result.winner is None
    assert (result.default.fresh.label, result.candidates[0].fresh.label) == ("OOM", "over budget")
    result.write(plan)
    assert json.loads((plan.folder / "confirm.json").read_text())["winner"] is None


def test_without_the_defaults_nothing_is_said(plan, search, database):
    confirming = confirmation_plan(plan, search, database)
    assert read_confirmation(plan, search, confirming, make_study(database, "fresh")) is None


def test_confirm_json_holds_every_return(plan, search, database):
    result = confirmed(plan, search, database, (0.1, [300.0, 310.0, 290.0, 300.0]))
    result.write(plan)
    written = json.loads((plan.folder / "confirm.json").read_text())
    assert written["winner"]["params"] == {"epsilon": 0.1}
    assert written["candidates"][0]["values"] == [300.0, 310.0, 290.0, 300.0]
    assert written["candidates"][0]["gain"]["mean"] == pytest.approx(100.0)
    assert written["default"]["values"] == [200.0, 200.0, 210.0, 190.0]
    assert written["seeds"] == [8, 9, 10, 11]
    assert written["trials_searched"] == 6


def test_several_objectives_cannot_be_confirmed(plan):
    objectives = parse_objectives(["final_return", "auc_return"], None, Aggregate.mean, 3)
    with pytest.raises(ConfigError, match=r"study.confirm.top=2: a study of several objectives"):
        replace(plan, objectives=objectives).check()


def test_a_space_over_seeds_is_refused(plan):
    space = make_space(seed="range(1,5)")
    with pytest.raises(ConfigError, match=r"seed=range\(1,5\): .*study.num_seeds"):
        replace(plan, space=space).check()
