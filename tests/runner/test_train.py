"""The functions that Python programs import: what they refuse, and what a run of theirs leaves."""

import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

import ppo_lab
from ppo_lab import compose, load_runs, play, train
from ppo_lab.utils.errors import ConfigError
from tests.helpers.trainers import config

SMALL = ("num_envs=2", "num_steps=16", "num_epochs=1", "num_minibatches=2", "total_steps=64")
QUIET = ("tracking.terminal=none", "env.max_episode_steps=20")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["epsilon=0.1,0.2"], "epsilon=0.1,0.2: describes several runs"),
        (["sweep=memory"], "sweep=memory: describes several runs"),
        (["study=default"], "study=default: describes several runs"),
        (["hydra.mode=MULTIRUN"], "hydra.mode=MULTIRUN: describes several runs"),
        (["total_steps=1e5"], "total_steps=1e5: must be a whole number; write 100000"),
        (["env=cartpol"], "did you mean cartpole?"),
        ("env=cartpole", "overrides=env=cartpole: must be a list"),
    ],
)
def test_what_is_no_run_is_refused_as_on_the_command_line(words, reason):
    with pytest.raises(ConfigError) as refused:
        compose(words)
    assert reason in str(refused.value)


def test_a_folder_of_yaml_files_may_be_ones_own(tmp_path):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "short.yaml").write_text("id: CartPole-v1\nmax_episode_steps: 7\n")
    assert compose(["env=short"], config_dir=tmp_path).env.max_episode_steps == 7


def test_a_trained_folder_is_a_runs_folder(tmp_path, capsys):
    run = train(config(*SMALL, *QUIET, "seed=3", "eval_every=1"), tmp_path / "a" / "run")
    assert run.status == "finished"
    assert run.policy().act([0.0] * 4) in (0, 1)
    with pytest.raises(ConfigError, match="holds a run; resume=True goes on with it"):
        train(config(*SMALL, *QUIET), run.folder)
    with pytest.raises(ConfigError, match="trained with another config: seed 3 -> 1"):
        train(config(*SMALL, *QUIET, "eval_every=1"), run.folder, resume=True)
    assert yaml.safe_load((run.folder / ".hydra" / "config.yaml").read_text())["seed"] == 3
    assert play.main([str(run.folder / "best"), "--episodes", "2", "--json"]) == 0
    assert "eval_return" in capsys.readouterr().out


def test_runs_are_read_from_below_a_folder_whatever_became_of_them(tmp_path):
    base = config(*SMALL, *QUIET)
    for seed in (1, 2):
        train(replace(base, seed=seed, epsilon=None if seed == 2 else 0.2), tmp_path / str(seed))
    (tmp_path / "2" / "summary.json").unlink()  # as of a run that was killed
    runs = load_runs(tmp_path).set_index("folder")
    assert list(runs.index) == ["1", "2"]
    assert list(runs["status"]) == ["finished", "interrupted"]
    assert list(runs["config.seed"]) == [1, 2]
    assert runs["config.epsilon"].isna().tolist() == [False, True]
    assert runs.loc["1", "time.update_s"] > 0
    curves = load_runs(tmp_path, curves=True)
    assert list(zip(curves["folder"], curves["global_step"])) == [
        ("1", 32), ("1", 64), ("2", 32), ("2", 64),
    ]  # fmt: skip
    assert curves["losses/value_loss"].notna().all()
    assert "ppo/ratio" not in curves


def test_frames_say_what_they_need(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'ppo_lab\[pandas\]'"):
        load_runs(tmp_path)


def test_the_package_imports_nothing_before_a_function_is_used():
    code = "import sys, ppo_lab; print(sorted({'torch', 'hydra', 'numpy'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'tran'"):
        _ = ppo_lab.tran
