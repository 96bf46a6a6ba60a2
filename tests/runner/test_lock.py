"""One run per folder: one of many starts wins, the refusal names it, the dead hold nothing."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from ppo_lab.runner import lock as locking
from ppo_lab.runner.lock import LOCK_FILE, holder_of, lock_run_folder
from ppo_lab.runner.stored import stored_summary
from ppo_lab.utils.errors import ConfigError

# Tries to lock a folder together with others, says what it was told, and ends with its input.
START = """
import os, sys
from pathlib import Path
from ppo_lab.runner.lock import lock_run_folder
print(os.getpid(), flush=True)
sys.stdin.readline()
try:
    lock_run_folder(Path(sys.argv[1]))
    print("won", flush=True)
except ValueError as error:
    print(error, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def contest(tmp_path):
    """Eight processes that start in one folder at the same moment; yield what each was told."""
    words = [sys.executable, "-c", START, str(tmp_path / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen(words, text=True, **pipes) for _ in range(8)]
    try:
        assert all(process.stdout.readline() for process in processes)  # all have imported
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        yield {process: process.stdout.readline().strip() for process in processes}
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_exactly_one_of_eight_simultaneous_starts_wins_and_the_others_name_it(contest, tmp_path):
    folder = tmp_path / "run"
    (winner,) = [process for process, told in contest.items() if told == "won"]
    refusals = [told for told in contest.values() if told != "won"]
    who = f"process {winner.pid} on {socket.gethostname()} since 2"
    assert [who in told for told in refusals] == [True] * 7
    assert holder_of(folder)["pid"] == winner.pid
    assert stored_summary(folder)["status"] == "running"
    winner.kill()
    winner.wait()
    assert holder_of(folder) is None
    assert stored_summary(folder)["status"] == "died"
    lock_run_folder(folder).release()  # free again


def test_a_process_takes_its_own_lock_again_and_a_fork_does_not_keep_it(tmp_path):
    with lock_run_folder(tmp_path) as lock:
        assert lock_run_folder(tmp_path / "." / "") is lock
        lock.release()
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            os.read(reading, 1)  # until the test is over
            os._exit(0)
        os.close(reading)
        assert holder_of(tmp_path)["pid"] == os.getpid()
    assert holder_of(tmp_path) is None
    os.close(writing)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_a_live_process_is_refused(
    number, tmp_path, monkeypatch, caplog
):
    def refuse(*_):
        raise OSError(number, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_run_folder(tmp_path):
        assert "cannot be locked" in caplog.text
        note = json.loads((tmp_path / LOCK_FILE).read_text())
        assert note["is_enforced"] is False
        monkeypatch.setattr(os, "getpid", lambda: note["pid"] + 1)  # as another process sees it
        assert holder_of(tmp_path)["pid"] == note["pid"]
        with pytest.raises(ConfigError, match=f"process {note['pid']} on "):
            locking.RunLock(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_killed_run_with_a_checkpoint_reads_as_interrupted(tmp_path):
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    (tmp_path / "checkpoints" / "12" / "manifest.json").write_text("{}")
    found = stored_summary(tmp_path)
    assert found["status"] == "interrupted"
    assert "iteration 12" in found["reason"]
