"""Storage calls are retried while the storage is unavailable, and only then."""

import errno
import sqlite3

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import IntegrityError, OperationalError

from ppo_lab.studies.store.retry import RetryPolicy, StorageLostError, is_outage


def outage():
    return OperationalError("SELECT 1", {}, sqlite3.OperationalError("database is locked"))


class Storage:
    """Fails ``num_failures`` times, then returns the number of calls."""

    def __init__(self, num_failures, error):
        self.num_failures, self.error, self.num_calls = num_failures, error, 0

    def __call__(self):
        self.num_calls += 1
        if self.num_calls <= self.num_failures:
            raise self.error
        return self.num_calls


def test_an_outage_is_waited_out_and_reported():
    waits = []
    policy = RetryPolicy(10.0, lambda what, waited_s: waits.append(what))
    assert policy.call("read", Storage(2, outage())) == 3
    assert waits == ["read", "read"]


def test_errors_that_optuna_wraps_are_distinguished_by_their_cause():
    wrapped = StorageInternalError("commit failed")
    wrapped.__cause__ = outage()
    assert is_outage(wrapped)
    wrapped.__cause__ = IntegrityError("INSERT", {}, sqlite3.IntegrityError("UNIQUE"))
    assert not is_outage(wrapped)


def test_a_mistake_is_raised_at_once():
    storage = Storage(1, ValueError("no such trial"))
    with pytest.raises(ValueError, match="no such trial"):
        RetryPolicy(10.0).call("read", storage)
    assert storage.num_calls == 1


def test_retries_end_and_name_the_call():
    with pytest.raises(StorageLostError, match="tell"):
        RetryPolicy(0.2).call("tell", Storage(1000, outage()))


def test_waiting_can_be_given_up():
    storage = Storage(1000, outage())
    with pytest.raises(StorageLostError):
        RetryPolicy(600.0, is_given_up=lambda: storage.num_calls == 2).call("tell", storage)
    assert storage.num_calls == 2


def test_a_full_disk_is_waited_out_and_another_fault_of_it_is_not():
    assert is_outage(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_outage(PermissionError(errno.EACCES, "Permission denied"))
