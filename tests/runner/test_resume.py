"""A run that is killed at any moment ends with the bits of one that was never disturbed."""

import pickle
import random
import signal
from dataclasses import replace

import pytest

from benchmarks.resumable import SIZES, outcome
from ppo_lab.utils.crash_points import CRASH_POINTS, VARIABLE
from tests.helpers.commands import ppo_lab
from tests.helpers.trainers import config

KILLED = -signal.SIGKILL
EVALUATED = ("eval_every=2", "eval_episodes=2", "env.max_episode_steps=25")


def train(folder, lanes=1, **environment):
    """Train runs with the seeds 1 to ``lanes`` as one stack; return the exit status."""
    configs = folder.parent / f"{lanes}.pickle"
    base = config(*SIZES, *EVALUATED)
    configs.write_bytes(pickle.dumps([replace(base, seed=seed + 1) for seed in range(lanes)]))
    words = str(folder), str(configs)
    done = ppo_lab(folder.parent, *words, module="benchmarks.resumable", **environment)
    assert done.returncode in (0, KILLED), done.stderr
    return done.returncode


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the outcome of a stack that nobody disturbs, by its number of lanes."""
    known = {}

    def of(lanes):
        if lanes not in known:
            folder = tmp_path_factory.mktemp("undisturbed") / "runs"
            assert train(folder, lanes=lanes) == 0
            known[lanes] = outcome(folder)
            assert len(known[lanes][0].policies) == 2  # the best and the last
        return known[lanes]

    return of


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(lanes, tmp_path, undisturbed):
    moments = random.Random(lanes)
    num_kills = 0
    while num_kills < 3:
        status = train(tmp_path / "runs", lanes=lanes, KILL_AFTER_S=str(moments.uniform(0.1, 0.5)))
        num_kills += status == KILLED
    train(tmp_path / "runs", lanes=lanes)
    assert outcome(tmp_path / "runs") == undisturbed(lanes)


def test_a_run_killed_once_at_every_named_place_ends_like_one_that_was_not(tmp_path, undisturbed):
    for name in CRASH_POINTS:  # each start comes a little further than the one before
        # The run shall not end before all have been visited.
        visit = 2 if name in ("row_written", "rows_synced", "checkpoint_half_written") else 1
        assert train(tmp_path / "runs", **{VARIABLE: f"{name}:{visit}"}) == KILLED, name
    assert train(tmp_path / "runs") == 0
    assert outcome(tmp_path / "runs") == undisturbed(1)
