"""Several machines on one PostgreSQL."""

import contextlib
import dataclasses
import time
from types import SimpleNamespace

import optuna
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ppo_lab.studies.definition.storage_url import masked, storage_url
from ppo_lab.studies.store import database as storage
from ppo_lab.studies.store import lease
from ppo_lab.studies.store.database import Database
from ppo_lab.studies.store.lease import Lease
from ppo_lab.studies.store.retry import is_outage
from ppo_lab.utils.errors import ConfigError
from tests.helpers.engine import FormulaPool, ended
from tests.helpers.postgres_server import why_not
from tests.helpers.studies import plan_of

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


def database(server, folder):
    folder.mkdir()
    return Database(storage_url(server.url, folder), folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"password": "wrong"}, "password authentication failed"),
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
        ({"host": "nowhere.invalid"}, "nowhere.invalid"),
    ],
)
def test_what_no_waiting_mends_is_refused_at_once_in_the_servers_words(
    server, tmp_path, monkeypatch, change, words
):
    monkeypatch.chdir(tmp_path)
    plan = plan_of("tracking.terminal=none")
    url = storage_url(server.url, plan.folder).set(**change)
    begun_s = time.monotonic()
    with pytest.raises(ConfigError, match=rf"study.storage=\.\.\.: .*{words}") as refused:
        ended(dataclasses.replace(plan, url=url), FormulaPool())
    assert time.monotonic() - begun_s < 10.0
    assert server.password not in str(refused.value)


@pytest.fixture
def leases(server, tmp_path, monkeypatch):
    """Ours, the other machine's, and our clock; a lease lasts a minute."""
    clock = SimpleNamespace(now_s=1000.0)
    monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    here, there = (Lease(database(server, tmp_path / name), 60.0) for name in ("here", "there"))
    # As if on another machine, where its lock cannot be looked at.
    there.owner = there.owner._replace(boot="another", lock="/nowhere/lock")
    yield here, there, clock
    for each in (here, there):
        each._database.close()


def pass_time(clock, *renewing, minutes):
    for _ in range(int(minutes * 4)):
        clock.now_s += 15.1
        for each in renewing:
            each.renew()


def test_a_machine_unheard_of_for_a_lease_is_dead_and_none_before(leases):
    here, there, clock = leases
    there.renew()
    here.renew()
    pass_time(clock, here, there, minutes=2)
    assert not here.is_dead(there.owner)
    pass_time(clock, here, minutes=0.75)
    assert not here.is_dead(there.owner)
    pass_time(clock, here, minutes=0.5)
    assert here.is_dead(there.owner)
    there.renew()  # it was only cut off
    pass_time(clock, here, minutes=0.25)
    assert not here.is_dead(there.owner)


def test_nobody_is_dead_right_after_an_outage_or_a_sleep_of_our_own(leases):
    here, there, clock = leases
    there.renew()
    here.renew()
    clock.now_s += 3600.0
    here.renew()
    assert not here.is_dead(there.owner)
    pass_time(clock, here, minutes=1.25)
    assert here.is_dead(there.owner)


def test_a_jump_of_the_databases_clock_kills_nobody(leases):
    here, there, clock = leases
    there.renew()
    here.renew()
    pass_time(clock, here, there, minutes=1)
    with here._database.connection() as connection:
        connection.execute(text("UPDATE ppo_lab_parents SET seen = seen - interval '1 hour'"))
    pass_time(clock, here, minutes=0.25)
    assert not here.is_dead(there.owner)
    pass_time(clock, here, there, minutes=2)
    assert not here.is_dead(there.owner)


def test_a_machine_that_ended_leaves_no_row(leases):
    here, there, _ = leases
    here.renew()
    there.renew()
    there.owner = there.owner._replace(lock=str(there._database.folder / "lock"))
    there.close()
    with here._database.connection() as connection:
        rows = connection.execute(text("SELECT parent FROM ppo_lab_parents")).scalars().all()
    assert here.owner.id in rows
    assert there.owner.id not in rows


def test_the_shared_database_holds_one_lock_for_each_study(server, tmp_path):
    first, second = (database(server, tmp_path / name) for name in ("first", "second"))
    with first.exclusive("one"), second.exclusive("another"):
        pass  # no deadlock: two studies
    assert optuna.get_all_study_names(first.storage) == optuna.get_all_study_names(second.storage)
    first.close()
    second.close()


def test_the_lock_of_a_machine_that_fell_silent_goes_to_the_next(server, tmp_path, monkeypatch):
    first, second = (database(server, tmp_path / name) for name in ("first", "second"))
    with contextlib.ExitStack() as silent:
        with monkeypatch.context() as only_the_first:
            only_the_first.setattr(storage, "_SILENT_S", 0.2)
            silent.enter_context(first.exclusive("one"))
        with second.exclusive("one"):  # waits, though the first has not left
            pass
        with pytest.raises(DBAPIError) as told:
            silent.close()  # and the first learns that it held nothing any more
    assert is_outage(told.value)
    first.close()
    second.close()


def test_a_password_is_in_no_text(server, tmp_path):
    url = storage_url(f"{server.url}?password=hidden", tmp_path)
    assert server.password not in masked(url)
    assert "hidden" not in masked(url)
