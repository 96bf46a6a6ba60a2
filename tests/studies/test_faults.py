"""What a study makes of a disk that is full and of files that somebody deletes."""

import csv
import dataclasses
import errno
import shutil

import pytest
from sqlalchemy.engine import make_url

from ppo_lab.runner import result
from ppo_lab.runner.result import Result, read_result
from ppo_lab.studies.scheduler import Ending, StudyScheduler
from ppo_lab.studies.store.database import Database
from ppo_lab.studies.store.retry import StorageLostError
from ppo_lab.utils import json_files
from ppo_lab.utils.json_files import write_json
from tests.helpers.engine import FormulaPool, carried
from tests.helpers.studies import plan_of


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return plan_of("study.num_trials=4", "study.num_reports=1", "tracking.terminal=none")


class FullDisk:
    """Raises as a write does until somebody has made room."""

    def __init__(self, function, num_failures):
        self._function, self.num_left = function, num_failures

    def __call__(self, *arguments):
        if self.num_left:
            self.num_left -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._function(*arguments)


def test_a_result_waits_for_room_on_its_disk(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(json_files.time, "sleep", pauses.append)
    monkeypatch.setattr(result, "write_json", FullDisk(write_json, 2))
    ended = Result(7, "finished", None, [{"seed": 1, "final_return": 3.0}])
    ended.write(tmp_path)
    assert read_result(tmp_path) == ended
    assert len(pauses) == 2
    with pytest.raises(FileNotFoundError):  # no wait brings that one back
        ended.write(tmp_path / "deleted")


@pytest.mark.parametrize("content", ["", '{"number": 2, "sta', "[]", '{"number": 2}'])
def test_an_attempt_whose_result_is_damaged_runs_again(plan, caplog, content):
    class Damages(FormulaPool):
        def _leave(self, task, *rest):
            super()._leave(task, *rest)
            if len(self.tasks) == 3:
                (task.folder / "result.json").write_text(content)

    pool = Damages(max_running=1)
    assert carried(plan, pool) is Ending.complete
    assert [task.number for task in pool.tasks] == [0, 1, 2, 2, 3]
    (line,) = (record.getMessage() for record in caplog.records if "no result" in record.msg)
    assert "trials/0002" in line


def test_a_trial_begins_when_the_disk_has_room_again(plan, monkeypatch):
    full = FullDisk(StudyScheduler._new_folder, 2)
    monkeypatch.setattr(StudyScheduler, "_new_folder", lambda *arguments: full(*arguments))
    assert carried(plan, FormulaPool()) is Ending.complete
    assert full.num_left == 0
    assert len(list(plan.folder.glob("trials/*/result.json"))) == 4


class Deleting(FormulaPool):
    """Deletes a folder once, when the third trial starts."""

    def __init__(self, folder):
        super().__init__(max_running=1)
        self._folder = folder

    def start(self, task):
        if task.number == 2 and self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None
        return super().start(task)


def test_a_deleted_folder_of_an_ended_trial_costs_its_files_only(plan):
    assert carried(plan, Deleting(plan.folder / "trials" / "0000")) is Ending.complete
    assert len(list(plan.folder.glob("trials/*/result.json"))) == 3
    assert (plan.folder / "best.yaml").is_file()


def test_a_running_trial_whose_folder_is_deleted_runs_again_in_another(plan):
    class DeletesItsOwn(FormulaPool):
        def start(self, task):
            slot = super().start(task)
            if task.folder.name == "0002":
                shutil.rmtree(task.folder)
            return slot

    pool = DeletesItsOwn(max_running=1)
    assert carried(plan, pool) is Ending.complete
    folders = [task.folder.relative_to(plan.folder / "trials") for task in pool.tasks]
    # Three attempts, each deleted: the name is free again each time.
    assert [str(folder) for folder in folders] == ["0000", "0001", *["0002"] * 3, "0003"]
    with (plan.folder / "trials.csv").open() as file:
        outcomes = [row["outcome"] for row in csv.DictReader(file)]
    assert outcomes == ["kept", "kept", "failed", "kept"]


def test_a_study_whose_folder_is_deleted_ends_and_says_so(plan, caplog):
    study = dataclasses.replace(plan.study, storage_timeout_s=0.1)
    pool = Deleting(plan.folder)
    ending = carried(dataclasses.replace(plan, study=study), pool)
    assert ending is Ending.storage_lost
    assert "the storage is lost" in caplog.text


def test_a_lock_whose_folder_is_deleted_is_not_waited_for(plan, tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    database = Database(make_url(f"sqlite:///{folder / 'study.db'}"), folder)
    shutil.rmtree(folder)
    with pytest.raises(StorageLostError, match="is gone"), database.exclusive("quick"):
        pass
    assert not folder.exists()
    database.close()
