"""benchmarks.profile: its stopwatch, and that it still fits the trainer it takes apart."""

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks.profile import Stopwatch


@pytest.fixture
def watch(monkeypatch):
    """A stopwatch whose clock shows 0, 1, 3, 7, 8, 10."""
    monkeypatch.setattr(time, "thread_time", iter([0.0, 1.0, 3.0, 7.0, 8.0, 10.0]).__next__)
    return Stopwatch()


def test_a_part_has_the_time_that_no_part_within_it_has(watch):
    inner = watch.timed("inner", lambda: None)  # from 3 to 7
    watch.timed("outer", inner)()  # from 1 to 8
    assert watch.take() == {"rest": 3.0, "outer": 3.0, "inner": 4.0}  # rest: 0 to 1, 8 to 10
    assert watch.calls == {"outer": 1, "inner": 1}


def test_a_call_from_elsewhere_is_not_timed(watch):
    inner = watch.timed("inner", lambda: None, within="another")
    watch.timed("outer", inner)()  # from 1 to 3
    assert watch.take() == {"rest": 5.0, "outer": 2.0}  # rest: 0 to 1, 3 to 7
    assert watch.calls == {"outer": 1}


def test_a_part_that_raises_is_left(watch):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        watch.timed("outer", fail)()
    assert watch.part == "rest"


def test_every_part_of_an_iteration_is_found_and_they_add_up():
    # In a process of its own: it puts its stopwatch into classes.
    name = "CartPole, torch, 1 lane"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.profile", "--iterations", "1", "--measure", name],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    profile = json.loads(done.stdout.splitlines()[-1])
    idle = {part for part, seconds in profile["seconds"].items() if seconds == 0.0}
    assert idle == {"normalising"}  # this environment's numbers are used as they are
    assert sum(profile["seconds"].values()) == pytest.approx(profile["whole_s"])  # one iteration
    assert profile["num_env_steps"] == 8 * 128
    assert profile["operations"]["optimizer"] > 0
