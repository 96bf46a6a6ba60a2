"""The scheduler runs crashed trials again, and ends those that no run can have."""

import dataclasses
import signal

import pytest

from ppo_lab.runner.result import Result
from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.display.progress import StudyProgress
from ppo_lab.studies.scheduler import Ending, InterruptHandler, StudyScheduler
from ppo_lab.studies.store.database import Database
from ppo_lab.studies.store.lease import Lease
from ppo_lab.studies.store.retry import RetryPolicy
from ppo_lab.studies.store.trial_store import TrialStore
from ppo_lab.utils.errors import ConfigError
from ppo_lab.workers.base import Exited, WorkerPool
from tests.helpers.studies import plan_of


@pytest.fixture(scope="module")
def plan():
    return plan_of("study.num_trials=3", "study.num_seeds=2", "study.storage=sqlite:///study.db",
                   "compile=never")  # fmt: skip


class Scripted(WorkerPool):
    """Ends each attempt at a trial as its script says: with a status, or None for a crash."""

    max_running = 1

    def __init__(self, script):
        self.script = {number: list(outcomes) for number, outcomes in script.items()}
        self.exits = []

    def start(self, task):
        status = self.script[task.number].pop(0)
        if status is not None:
            summaries = [{"seed": 1, "status": status, "reason": "so", "final_return": 3.0}]
            Result(task.number, status, "so", summaries).write(task.folder)
        self.exits.append((task.number, 0 if status else -signal.SIGSEGV))
        return 0

    def send(self, decision):
        raise AssertionError("nothing is reported here")

    def wait(self, timeout_s):
        exits, self.exits = self.exits, []
        return [Exited(number, code) for number, code in exits]

    def stop(self, number):
        raise AssertionError("nothing is stopped here")

    def close(self):
        self.exits = []


class Seen(StudyProgress):
    """Keeps the reasons of ended trials, and counts retries."""

    num_retries = 0

    def end(self, stored, counts):
        super().end(stored, counts)
        self.reasons = [*getattr(self, "reasons", []), stored.user_attrs["outcome"]["reason"]]

    def retry(self, *arguments):
        super().retry(*arguments)
        self.num_retries += 1


def run_parent(plan, folder, script):
    database = Database(plan.url, folder)
    lease, patience, seen = Lease(database, 60.0), RetryPolicy(10.0), Seen(plan.objectives)
    book = TrialStore(plan, database, lease)
    signals = InterruptHandler()
    parent = StudyScheduler(book, Scripted(script), patience, signals, seen)
    return parent.run(), book.study.trials, seen


def test_a_crash_is_run_again_in_a_folder_of_its_own_until_retries_are_spent(
    plan, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    crashes = [None] * 3  # max_retries is 2
    script = {0: [None, "finished"], 1: crashes, 2: ["failed", "out_of_memory"]}
    ending, trials, seen = run_parent(plan, tmp_path, script)
    assert ending is Ending.complete
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "PRUNED"]
    assert seen.reasons == ["so", "killed by SIGSEGV", "so"]
    assert seen.num_retries == 1 + 2 + 1
    folders = sorted(
        str(path.relative_to(tmp_path / plan.folder / "trials"))
        for path in (tmp_path / plan.folder / "trials").rglob("*")
        if path.is_dir()
    )
    assert folders == [
        "0000", "0000/attempt_2",
        "0001", "0001/attempt_2", "0001/attempt_3",
        "0002", "0002/attempt_2",
    ]  # fmt: skip


class Refusing(Plan):
    """A plan with a hole between its corners."""

    def trial_configs(self, params, repeat=0):
        if params["epsilon"] != 0.2:
            raise ConfigError("epsilon", params["epsilon"], "must be 0.2")
        return super().trial_configs(params, repeat)


def test_parameters_that_no_run_can_have_end_their_trial_and_not_the_study(
    plan, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    fields = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    ending, trials, seen = run_parent(Refusing(**fields), tmp_path, {0: ["finished"]})
    assert ending is Ending.complete
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert trials[1].constraints == {"ran": 1.0}
    assert "must be 0.2" in seen.reasons[1]
