"""Storage calls are retried while the storage is unavailable, and only then."""

import errno
import sqlite3

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError

from ppo_lab.studies.store.retry import (
    RetryPolicy,
    StorageLostError,
    StorageRefusedError,
    is_outage,
)


def outage(words="database is locked"):
    return OperationalError("SELECT 1", {}, sqlite3.OperationalError(words))


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
    policy = RetryPolicy(10.0, lambda what, waited_s, why: waits.append((what, why)))
    assert policy.call("read", Storage(2, outage())) == 3
    assert waits == [("read", "database is locked")] * 2


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
    with pytest.raises(StorageLostError, match=r"tell.*database is locked"):
        RetryPolicy(0.2).call("tell", Storage(1000, outage()))


def test_waiting_can_be_given_up():
    storage = Storage(1000, outage())
    with pytest.raises(StorageLostError):
        RetryPolicy(600.0, is_given_up=lambda: storage.num_calls == 2).call("tell", storage)
    assert storage.num_calls == 2


def test_a_full_disk_is_waited_out_and_another_fault_of_it_is_not():
    assert is_outage(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_outage(PermissionError(errno.EACCES, "Permission denied"))


@pytest.mark.parametrize(
    "words",
    [
        'connection failed: FATAL:  password authentication failed for user "lab"',
        'connection failed: FATAL:  database "nowhere" does not exist',
        "failed to resolve host 'nowhere': [Errno -2] Name or service not known",
        "attempt to write a readonly database",
    ],
)
def test_a_refusal_is_waited_for_only_in_a_study_that_has_begun(words):
    storage = Storage(1, outage(words))
    with pytest.raises(StorageRefusedError, match=words.split()[-1]):
        RetryPolicy(10.0, is_opening=True).call("open", storage)
    assert storage.num_calls == 1
    assert RetryPolicy(10.0).call("tell", Storage(1, outage(words))) == 2


def test_a_server_that_is_down_is_waited_for_from_the_start():
    refused = outage("connection to server at 127.0.0.1 failed: Connection refused")
    assert RetryPolicy(10.0, is_opening=True).call("open", Storage(1, refused)) == 2


@pytest.mark.parametrize(
    ("is_opening", "kind"), [(True, StorageRefusedError), (False, StorageLostError)]
)
def test_a_damaged_file_is_not_waited_for(is_opening, kind):
    error = DatabaseError("PRAGMA", {}, sqlite3.DatabaseError("file is not a database"))
    storage = Storage(1, error)
    with pytest.raises(kind, match="file is not a database"):
        RetryPolicy(10.0, is_opening=is_opening).call("open", storage)
    assert storage.num_calls == 1
