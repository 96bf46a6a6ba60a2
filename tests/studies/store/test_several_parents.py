"""Several parents of one study, started at the same moment on storage that does not exist yet."""

import dataclasses
import multiprocessing
import os

import pytest
from sqlalchemy import text

from ppo_lab.studies.definition.storage_url import storage_url
from ppo_lab.studies.scheduler import Ending, InterruptHandler
from ppo_lab.studies.session import StudyRunner
from ppo_lab.studies.store.database import Database
from ppo_lab.studies.store.lease import Lease
from ppo_lab.studies.store.retry import RetryPolicy
from ppo_lab.studies.store.trial_store import TrialStore
from tests.helpers.engine import FormulaPool
from tests.helpers.postgres_server import why_not
from tests.helpers.studies import plan_of, trials_of

NUM_PARENTS, NUM_TRIALS = 4, 16
POSTGRES = pytest.param("postgresql", marks=pytest.mark.postgres)


def run_parent(plan, folder, barrier):
    """Run a part of the study in this process, as on a machine that has ``folder``."""
    os.chdir(folder)
    barrier.wait()
    plan.folder.mkdir(parents=True, exist_ok=True)
    session = StudyRunner(plan, FormulaPool(max_running=3), InterruptHandler())
    ending, _ = session.run(plan)
    session.close()
    assert ending is Ending.complete


@pytest.mark.parametrize("storage", ["sqlite", POSTGRES])
def test_four_parents_at_once_run_the_exact_total(storage, tmp_path, request, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_of(f"study.num_trials={NUM_TRIALS}", "study.num_reports=3", "study.name=together",
                   "study.sampler.n_startup_trials=5", "tracking.terminal=none")  # fmt: skip
    folders = [tmp_path] * NUM_PARENTS
    if storage == "postgresql":
        server = request.getfixturevalue("server")
        plan = dataclasses.replace(plan, url=storage_url(server.url, plan.folder))
        folders = [tmp_path / f"machine_{i}" for i in range(NUM_PARENTS)]
        for folder in folders:
            folder.mkdir()
    fork = multiprocessing.get_context("fork")  # they share what this process has imported
    barrier = fork.Barrier(NUM_PARENTS)
    parents = [fork.Process(target=run_parent, args=(plan, f, barrier)) for f in folders]
    for parent in parents:
        parent.start()
    for parent in parents:
        parent.join(120)
    assert [parent.exitcode for parent in parents] == [0] * NUM_PARENTS
    url = plan.url.render_as_string(hide_password=False)
    trials = trials_of(tmp_path, url, study="together")
    assert [trial.number for trial in trials] == list(range(NUM_TRIALS))
    assert all(trial.state.is_finished() for trial in trials)
    assert {trial.user_attrs["attempt"] for trial in trials} == {1}
    assert [trial.user_attrs.get("role") for trial in trials] == ["baseline"] + [None] * (
        NUM_TRIALS - 1
    )
    results = sorted(path.parent.name for path in tmp_path.rglob("result.json"))
    assert results == [f"{number:04}" for number in range(NUM_TRIALS)]


@pytest.mark.postgres
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_the_lock_of_a_claim_lost_with_its_connection_loses_and_doubles_nothing(
    server, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    plan = plan_of("study.num_trials=2", "study.name=cut")
    plan = dataclasses.replace(plan, url=storage_url(server.url, plan.folder))
    first, second = (Database(plan.url, tmp_path) for _ in range(2))
    stores = [TrialStore(plan, database, Lease(database, 60.0)) for database in (first, second)]
    others = []
    ask = stores[0].study.ask

    def ask_while_cut_off():
        """Lose the lock, which another parent takes, and go on over Optuna's own connection."""
        monkeypatch.setattr(stores[0].study, "ask", ask)
        with second.connection() as connection:
            cut = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            assert connection.execute(text(cut)).scalars().all() == [True]
        others.extend(stores[1].claim() for _ in range(2))  # all that the study wants
        return ask()

    monkeypatch.setattr(stores[0].study, "ask", ask_while_cut_off)
    assert RetryPolicy(10.0).call("claim", stores[0].claim) is None
    assert [claim.number for claim in others] == [0, 1]
    states = [trial.state.name for trial in stores[0].study.trials]
    assert states == ["RUNNING", "RUNNING", "WAITING"]
    for database in (first, second):
        database.close()
