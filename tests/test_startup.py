"""What a command may not import before it needs it: start-up is held by names, not by seconds."""

import json
import subprocess
import sys

import pytest

from ppo_lab.__main__ import expects_study

HEAVY = {
    "alembic", "gymnasium", "matplotlib", "optuna", "pandas", "scipy", "sqlalchemy", "sympy",
    "torch._dynamo", "torch._inductor", "wandb",
}  # fmt: skip
PROGRAM = """
import json, sys
from ppo_lab.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def imported(folder, *words):
    """Return the modules that a command has imported by its end."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("words", [["--help"], ["--help", "epsilon"], ["--version"]])
def test_help_and_version_import_neither_torch_nor_hydra(tmp_path, words):
    assert not (HEAVY | {"torch", "hydra", "numpy", "rich"}) & imported(tmp_path, *words)


def test_a_run_of_a_native_environment_imports_nothing_heavy_but_torch(tmp_path):
    modules = imported(tmp_path, "network=tiny", "total_steps=1024", "tracking=local")
    assert "ppo_lab.training.trainer" in modules
    assert not HEAVY & modules


def test_what_runs_a_study_leaves_scipys_statistics_to_its_end(tmp_path):
    # They take longer than all of Optuna, for one test of a confirmation.
    code = "import ppo_lab.studies.command, sys; print('scipy.stats' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_entry_point_needs_neither_torch_nor_hydra_to_start_a_studys_server():
    code = (
        "import sys, ppo_lab.__main__, ppo_lab.utils.forkserver; "
        "print([m for m in ('torch', 'hydra', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SLOW_MODULE = """
import pathlib, time
pathlib.Path("importing").touch()
while not pathlib.Path("interrupted").exists():
    time.sleep(0.01)
"""
INTERRUPTED = """
import multiprocessing, os, pathlib, signal, time
from multiprocessing import forkserver
from ppo_lab.utils import forkserver as server
if __name__ == "__main__":
    server._PRELOADED = ("slow",)
    server.start_server(is_tracked=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    pid = forkserver._forkserver._forkserver_pid
    while not pathlib.Path("importing").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGINT)
    pathlib.Path("interrupted").touch()
    process = multiprocessing.get_context("forkserver").Process(target=print)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert forkserver._forkserver._forkserver_pid == pid  # not one started anew
"""


def test_ctrl_c_does_not_end_the_server_while_it_imports(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_MODULE)
    (tmp_path / "program.py").write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "is_study"),
    [
        ([], False),
        (["epsilon=0.1,0.2", "-m"], False),
        (["study=default", "epsilon=interval(0.1,0.3)"], True),
        (["study=null"], False),
        (["sweep=epsilon"], True),
        (["sweep=memory"], False),  # a grid
        (["sweep=no_such_sweep"], False),
        (["study.num_trials=3"], False),
    ],
)
def test_the_words_tell_of_a_study_without_hydra(words, is_study):
    assert expects_study(words) is is_study
