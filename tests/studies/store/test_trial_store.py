"""The store of a study's trials: claims, reports and outcomes, without training anything."""

import contextlib
import dataclasses
import sqlite3
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from ppo_lab.runner.result import Result
from ppo_lab.utils.errors import ConfigError
from tests.helpers.studies import finished, plan_of, summary


def die(store):
    """End a parent as a kill would: the kernel releases its lock, no trial is released."""
    store.lease._file.close()


def test_the_defaults_come_first_and_no_more_than_the_total_is_claimed(open_store):
    store = open_store()
    claims = [store.claim() for _ in range(4)]
    assert claims[0].params == {"epsilon": 0.2}
    assert claims[0].role == "baseline"
    assert [claim.number for claim in claims] == [0, 1, 2, 3]
    assert store.claim() is None  # all are running
    for claim in claims:
        store.finish(claim, finished(claim.number, 10.0, 20.0))
    assert store.claim() is None
    counts = store.counts()
    assert (counts.complete, counts.finished, counts.running, counts.total) == (4, 4, 0, 4)
    assert store.study.trials[1].value == 15.0


def test_two_parents_share_the_total(open_store):
    first, second = open_store(), open_store()
    numbers = [store.claim().number for store in (first, second, first, second)]
    assert numbers == [0, 1, 2, 3]
    assert first.claim() is None
    assert second.claim() is None


def test_a_dead_parents_trial_is_reclaimed_under_its_number_with_its_values(open_store):
    first, second = open_store(), open_store()
    first.claim()
    lost = first.claim()
    kept = second.claim()
    die(first)
    taken = {claim.number: claim for claim in (second.claim(), second.claim())}
    assert taken.keys() == {0, 1}
    assert taken[1].params == lost.params
    assert taken[1].attempt == 2
    assert kept.number == 2  # its own trial is not taken from a living parent


def test_a_parent_that_ends_while_another_looks_at_it_is_free(open_store, monkeypatch):
    first, second = open_store(), open_store()
    claim = first.claim()
    lock, exists = Path(first.lease.owner.lock), Path.exists

    def ends_now(path):
        was_there = exists(path)
        if path == lock and was_there:
            first.release(claim)
            first.lease.close()
        return was_there

    monkeypatch.setattr(Path, "exists", ends_now)
    assert second.claim().number == claim.number
    assert not exists(lock)


def test_a_result_that_a_dead_parent_left_is_found_again(open_store, tmp_path):
    first, second = open_store(), open_store()
    claim = first.claim()
    folder = tmp_path / "0000"
    folder.mkdir()
    first.note_folder(claim, folder)
    finished(0, 30.0, 50.0).write(folder)
    die(first)
    again = second.claim()
    assert again.result is not None
    second.finish(again, again.result)
    assert second.study.trials[0].value == 40.0


def test_a_released_trial_is_claimed_again(open_store):
    store = open_store()
    claim = store.claim()
    store.release(claim)
    again = store.claim()
    assert (again.number, again.attempt, again.params) == (0, 2, claim.params)


@pytest.mark.parametrize("lost", ["attempt", "owner"])
@pytest.mark.parametrize("is_written", [False, True])
def test_a_claim_that_failed_halfway_is_no_attempt(open_store, monkeypatch, lost, is_written):
    store = open_store()
    store.release(store.claim())  # the first attempt
    write = optuna.Trial.set_user_attr

    def fail(trial, key, value):
        if key != lost or is_written:
            write(trial, key, value)
        if key == lost:
            raise OperationalError("UPDATE", {}, Exception("the connection is lost"))

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "set_user_attr", fail)
        for _ in range(2):
            with pytest.raises(OperationalError):
                store.claim()
    again = store.claim()
    assert (again.number, again.attempt) == (0, 2)
    store.release(again)
    assert store.claim().attempt == 3


@pytest.mark.parametrize("status", ["diverged", "out_of_memory", "over_budget"])
def test_what_could_not_run_is_pruned_and_ranks_below_all_that_could(open_store, status):
    store = open_store()
    good, bad = store.claim(), store.claim()
    store.finish(good, finished(0, 1.0, 1.0))
    store.report(bad, 200, (400.0, 500.0))  # it was far ahead before it broke
    reason = "the reason"
    stored = store.finish(
        bad, Result(1, status, reason, [summary(1, 400.0, status, reason), summary(2, 500.0)])
    )
    assert stored == store.study.trials[1]
    assert stored.state is TrialState.PRUNED
    assert stored.constraints == {"ran": 1.0}
    assert stored.user_attrs["outcome"]["reason"] == reason
    # Of TPE's two groups the infeasible trial is in the worse one.
    from optuna.samplers._tpe.sampler import _split_trials

    below, above = _split_trials(store.study, store.study.get_trials(deepcopy=False), 1)
    assert [trial.number for trial in below] == [0]
    assert [trial.number for trial in above] == [1]


def test_a_trial_without_a_return_did_not_run(open_store):
    store = open_store()
    trial = store.finish(store.claim(), finished(0, 10.0, None))
    outcome = trial.user_attrs["outcome"]
    assert (trial.state, outcome["status"]) == (TrialState.PRUNED, "no_result")
    assert outcome["reason"] == "a seed has no final_return"


def test_a_failed_trial_counts_towards_the_total(open_store):
    store = open_store()
    trial = store.finish(store.claim(), Result(0, "failed", "killed by SIGSEGV", []))
    assert trial.state is TrialState.FAIL
    assert store.counts().finished == 1


def test_constraints_are_stored_for_each_trial(open_store, plan):
    from ppo_lab.studies.definition.objective import parse_constraints

    constraints = parse_constraints(["wall_time_s <= 10"])
    store = open_store(constraints=constraints)
    store.finish(
        store.claim(),
        Result(0, "finished", None, [summary(i, 5.0, wall_time_s=4.0 * i) for i in (1, 3)]),
    )
    assert store.study.trials[0].constraints == {"wall_time_s<=10": 2.0}  # 12 s, 2 too many


def test_defaults_outside_the_space_run_but_no_sampler_sees_them(open_store):
    outside = plan_of("study.num_trials=3", "epsilon=interval(0.3,0.5)")
    store = open_store(space=outside.space, starts=outside.starts)
    claim = store.claim()
    assert (claim.role, claim.params) == ("baseline", {})
    trial = store.finish(claim, finished(0, 7.0, 9.0))
    assert trial.state is TrialState.FAIL
    assert trial.user_attrs["outcome"]["values"] == [8.0]
    assert 0.3 <= store.claim().params["epsilon"] <= 0.5


def test_a_restart_draws_other_samples_than_the_first_start_did(open_store):
    first = open_store()
    drawn = [first.claim().params["epsilon"] for _ in range(2)][1]
    second = open_store()
    assert second.claim().params["epsilon"] != drawn


def test_a_start_that_is_added_to_a_study_runs_next_and_once(open_store, plan):
    first = open_store()
    for number in range(2):
        first.finish(first.claim(), finished(number, 1.0, 1.0))
    starts = (*plan.starts, {"epsilon": 0.3})
    second = open_store(starts=starts)
    added = second.claim()
    assert (added.number, added.role, added.params) == (2, "start", {"epsilon": 0.3})
    assert open_store(starts=starts).claim().role == "search"


def test_another_base_run_is_refused_unless_allowed(open_store, plan):
    open_store()
    changed = dataclasses.replace(plan.config, lr=1e-4)
    with pytest.raises(ConfigError, match=r"run\.lr: 0\.001 -> 0\.0001"):
        open_store(config=changed)
    allowed = dataclasses.replace(plan.study, allow_change=True)
    assert open_store(config=changed, study=allowed).counts().total == 4


def test_a_trial_that_is_finished_twice_is_stored_once(open_store):
    store = open_store()
    claim = store.claim()
    assert store.finish(claim, finished(0, 1.0, 1.0)) is not None
    assert store.finish(claim, finished(0, 1.0, 1.0)) is not None
    assert store.counts().complete == 1


class LosesLock:
    """A database whose lock is lost while its n-th holder is inside, as with its connection."""

    def __init__(self, database, loses_at):
        self._database, self._left = database, loses_at

    def __getattr__(self, name):
        return getattr(self._database, name)

    @contextlib.contextmanager
    def exclusive(self, study):
        self._left -= 1
        if self._left:
            with self._database.exclusive(study):
                yield
        else:
            yield
            raise OperationalError("COMMIT", {}, sqlite3.OperationalError("the server has gone"))


def test_a_claim_whose_lock_was_lost_is_found_and_run(open_store):
    store = open_store()
    store._database = LosesLock(store._database, 1)
    with pytest.raises(OperationalError):
        store.claim()
    again = store.claim()
    assert (again.number, again.params) == (0, {"epsilon": 0.2})
    store.finish(again, finished(0, 1.0, 1.0))
    assert store.counts().complete == 1


def test_two_claims_of_the_last_trial_at_once_do_not_exceed_the_total(open_store):
    first, second = open_store(), open_store()
    claims = [first.claim() for _ in range(3)]
    broken = LosesLock(first._database, 1)
    first._database = broken
    ask = first.study.ask

    def both_ask():
        # The other parent holds the lock that the first one has lost.
        claims.append(second.claim())
        return ask()

    first.study.ask = both_ask
    with pytest.raises(OperationalError):
        first.claim()
    first.study.ask = ask
    assert first.claim() is None  # its fifth is one too many, and waits
    for claim in claims:
        (second if claim is claims[3] else first).finish(claim, finished(claim.number, 1.0, 1.0))
    assert [trial.state.name for trial in first.study.trials] == ["COMPLETE"] * 4 + ["WAITING"]
    assert first.counts().finished == 4


def test_a_trial_beyond_a_lowered_total_waits_until_the_total_is_raised(open_store, plan):
    first = open_store()
    claims = [first.claim() for _ in range(4)]
    first.finish(claims[0], finished(0, 1.0, 1.0))
    die(first)  # 1, 2 and 3 were running
    fewer = open_store(study=dataclasses.replace(plan.study, num_trials=3))
    assert [fewer.claim().number for _ in range(2)] == [1, 2]
    assert fewer.claim() is None
    raised = open_store().claim()
    assert (raised.number, raised.params) == (3, claims[3].params)
