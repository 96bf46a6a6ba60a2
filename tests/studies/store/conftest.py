"""A store of trials that is opened by one parent after another."""

import dataclasses

import pytest

from ppo_lab.studies.store.database import Database
from ppo_lab.studies.store.lease import Lease
from ppo_lab.studies.store.trial_store import TrialStore
from tests.helpers.engine import tables
from tests.helpers.studies import plan_of


@pytest.fixture(scope="module")
def plan():
    return plan_of("study.num_trials=4", "study.num_seeds=2", "study.storage=sqlite:///study.db")


@pytest.fixture
def open_store(plan, tmp_path, monkeypatch):
    """Open the study as another parent each time; variations are fields of the plan."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.db").write_bytes(tables())
    database = Database(plan.url, tmp_path)

    def open_another(**variations):
        return TrialStore(dataclasses.replace(plan, **variations), database, Lease(database, 60.0))

    return open_another
