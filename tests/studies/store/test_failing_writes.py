"""An outage of the storage at any write."""

import dataclasses
import sqlite3

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from ppo_lab.studies.store.retry import RetryPolicy
from tests.helpers.studies import finished


class Flaky:
    """An Optuna storage whose n-th write fails as if the server had gone, before or after it."""

    def __init__(self, storage, fails_at, *, after):
        self._storage, self._fails_at, self._after, self.num_calls = storage, fails_at, after, 0

    def __call__(self, name):
        real = getattr(self._storage, name)

        def write(*args, **kwargs):
            self.num_calls += 1
            is_due = self.num_calls == self._fails_at
            error = OperationalError("x", {}, sqlite3.OperationalError("disk I/O error"))
            if is_due and not self._after:
                raise error
            result = real(*args, **kwargs)
            if is_due:
                raise error
            return result

        return write


WRITES = (
    "create_new_trial", "set_trial_user_attr", "set_trial_param", "set_trial_state_values",
    "set_trial_system_attr", "set_trial_intermediate_value",
)  # fmt: skip


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("fails_at", range(1, 12))
def test_an_outage_at_any_write_loses_no_trial(open_store, plan, monkeypatch, fails_at, after):
    store = open_store(study=dataclasses.replace(plan.study, num_trials=2))
    flaky = Flaky(store.study._storage, fails_at, after=after)
    writes = {name: flaky(name) for name in WRITES}
    for name, write in writes.items():
        monkeypatch.setattr(store.study._storage, name, write)
    policy = RetryPolicy(10.0)
    num_finished = 0
    while (claim := policy.call("claim", store.claim)) is not None:
        policy.call("report", lambda claim=claim: store.report(claim, 200, (1.0, 2.0)))
        result = finished(claim.number, 1.0, 2.0)
        assert policy.call("tell", lambda claim=claim, result=result: store.finish(claim, result))
        num_finished += 1
    assert flaky.num_calls >= fails_at
    monkeypatch.undo()
    states = [trial.state for trial in store.study.trials]
    assert states == [TrialState.COMPLETE] * 2
    assert num_finished == 2
    assert optuna.get_all_study_names(store.study._storage) == ["quick"]
