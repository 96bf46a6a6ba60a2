"""Files of a stranger's folder set values; what else they hold is refused, and nothing executes."""

# ruff: noqa: E501 - a row of a table is a line

import os
from contextlib import ExitStack

import pytest

from ppo_lab.config.compose import check_command, check_config_dir, register
from ppo_lab.config.composer import open_hydra
from ppo_lab.config.error_messages import explain
from tests.helpers.commands import ppo_lab

BASE = "defaults:\n  - config\n  - _self_\n"
CANARY = "canary"  # a file in the current folder, which an attack would make
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)
HANDLER = "{version: 1, root: {handlers: [x]}, handlers: {x: %s}}"

# What the primary config holds beside ours, and what the message must hold.
MALICIOUS = {
    "callback-open": ("hydra: {callbacks: {x: {_target_: builtins.open, file: canary, mode: w}}}", "_target_"),
    "callback-hub": ("hydra: {callbacks: {x: {_target_: torch.hub.load, repo_or_dir: a/b}}}", "_target_"),
    "callback-save": ("hydra: {callbacks: {x: {_target_: numpy.save, file: canary, arr: 1}}}", "_target_"),
    "callback-optuna": ("hydra: {callbacks: {x: {_target_: optuna.samplers.TPESampler}}}", "hydra.callbacks"),
    "callback-alias": ("x: &x {_target_: builtins.open}\nhydra: {callbacks: {x: *x}}", "_target_"),
    "callback-merge": ("x: &x {_target_: builtins.open}\nhydra: {callbacks: {x: {<<: *x}}}", "_target_"),
    "callback-late": ("y: builtins.open\nhydra: {callbacks: {x: {_target_: '${y}'}}}", "_target_"),
    "launcher": ("hydra: {launcher: {_target_: builtins.open, file: canary}}", "_target_"),
    "sweeper": ("hydra: {sweeper: {_target_: builtins.open}}", "_target_"),
    "kwargs-target": ("env: {kwargs: {_target_: builtins.open}}", "_target_"),
    "sampler": ("study: {sampler: {_target_: os.system}}", "_target_"),
    "job-log-file": ("hydra: {job_logging: {handlers: {file: {filename: canary}}}}", "hydra.job_logging"),
    "job-log-factory": ("hydra: {job_logging: {formatters: {x: {'()': os.system}}}}", "hydra.job_logging"),
    "job-log-ext": ("hydra: {job_logging: {handlers: {screen: {stream: 'ext://os.environ'}}}}", "hydra.job_logging"),
    "hydra-log-class": ("hydra: {hydra_logging: {handlers: {x: {class: logging.FileHandler, filename: canary}}}}", "hydra.hydra_logging"),
    "env-set": ("hydra: {job: {env_set: {WANDB_BASE_URL: 'http://stranger'}}}", "hydra.job.env_set"),
    "env-set-preload": ("hydra: {job: {env_set: {LD_PRELOAD: ./x.so}}}", "hydra.job.env_set"),
    "env-copy": ("hydra: {job: {env_copy: [PLANTED_SECRET]}}", "hydra.job.env_copy"),
    "searchpath-file": ("hydra: {searchpath: ['file:///tmp']}", "hydra.searchpath"),
    "searchpath-package": ("hydra: {searchpath: ['pkg://antigravity']}", "hydra.searchpath"),
    "job-name": ("hydra: {job: {name: ../../canary}}", "hydra.job.name"),
    "help": ("hydra: {help: {template: '\\e[2J'}}", "hydra.help"),
    "run-dir-up": ("hydra: {run: {dir: ../canary}}", "hydra.run.dir"),
    "run-dir-absolute": ("hydra: {run: {dir: /tmp/canary}}", "hydra.run.dir"),
    "run-dir-home": ("hydra: {run: {dir: '${oc.env:HOME}/canary'}}", "hydra.run.dir"),
    "sweep-dir": ("hydra: {sweep: {dir: ../canary}}", "hydra.sweep.dir"),
    "sweep-subdir": ("hydra: {mode: MULTIRUN, sweep: {subdir: ../../canary}}", "hydra.sweep.subdir"),
    "output-subdir": ("hydra: {output_subdir: ../../canary}", "hydra.output_subdir"),
    "params": ("hydra: {mode: MULTIRUN, sweeper: {params: {+hydra.job.env_set.X: 1}}}", "hydra.job.env_set"),
    "chdir": ("hydra: {job: {chdir: true}}", "hydra.job.chdir"),
    "secret": ("tracking: {notes: '${oc.env:PLANTED_SECRET}'}", "environment variable"),
    "secret-default": ("tracking: {notes: '${oc.env:PLANTED_SECRET,x}'}", "environment variable"),
    "secret-nested": ("tracking: {notes: '${now:${oc.env:PLANTED_SECRET}}'}", "environment variable"),
    "secret-hidden": ("a: PLANTED_SECRET\ntracking: {notes: '${oc.env:${a}}'}", "environment variable"),
    "resolver-hidden": ("a: oc.env\ntracking: {notes: '${${a}:PLANTED_SECRET}'}", "interpolation"),
    "resolver-escaped": ('tracking: {notes: "\\x24{oc.env:PLANTED_SECRET}"}', "environment variable"),
    "resolver-defaults": ("tracking: {notes: '${unused_dir:canary}'}", "unused_dir"),
    "resolver-decode": ("tracking: {notes: \"${oc.decode:'1'}\"}", "oc.decode"),
    "python-tag": ("name: !!python/object/apply:os.system ['touch canary']", "cannot be read"),
    "alias-bomb": (BOMB, "at most 20,000 values"),
    "alias-itself": ("a: &a [*a]", "nest at most 32 deep"),
    "deep": ("a: " + "[" * 5000 + "]" * 5000, "nest at most 32 deep"),
    "long": ("name: " + "x" * 200_000, "at most 128 kB"),
    "binary": ("name: \x00\x01", "cannot be read"),
    "list": None,
}  # fmt: skip
# Files of config groups, which --config-dir makes options, and the words that choose them.
GROUPS = {
    "callbacks-group": ("hydra/callbacks/x.yaml", "x: {_target_: builtins.open, file: canary}", "+hydra/callbacks=x", "_target_"),
    "logging-group": ("hydra/job_logging/x.yaml", "version: 1\nhandlers: {x: {class: logging.FileHandler, filename: canary}}", "hydra/job_logging=x", "hydra.job_logging"),
    "launcher-group": ("hydra/launcher/x.yaml", "_target_: builtins.open\nfile: canary", "hydra/launcher=x", "_target_"),
    "launcher-shadow": ("hydra/launcher/stacked.yaml", "_target_: builtins.open\nfile: canary", "hydra/launcher=stacked", "_target_"),
    "launcher-setup": ("hydra/launcher/x.yaml", "defaults: [submitit_slurm]\nsetup: [touch canary]", "hydra/launcher=x", "hydra.launcher.setup"),
    "package": ("env/x.yaml", "# @package hydra.callbacks.x\na: 1", "env=x", "hydra.callbacks"),
    "package-env-set": ("network/x.yaml", "# @package hydra.job.env_set\nWANDB_BASE_URL: x", "network=x", "hydra.job.env_set"),
    "defaults-package": ("exp.yaml", "defaults:\n  - config\n  - /any@hydra.job.env_set: x\n  - _self_\n", "", "hydra.job.env_set"),
    "sweep": ("sweeps/x.yaml", "hydra: {callbacks: {x: {_target_: builtins.open, file: canary}}}", "sweep=x", "_target_"),
    "sweep-secret": ("sweeps/x.yaml", "tracking: {notes: '${oc.env:PLANTED_SECRET}'}", "sweep=x", "environment variable"),
}  # fmt: skip


def refusal(folder, monkeypatch, *words, name=None):
    """Return the message for a command with the stranger's ``folder``; nothing was executed."""
    here = folder.parent / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("PLANTED_SECRET", "hunter2hunter2")
    register()
    before = dict(os.environ)
    with pytest.raises(Exception) as caught, ExitStack() as stack:  # noqa: PT011, PT012
        hydra = stack.enter_context(open_hydra(check_config_dir(str(folder))))
        check_command(hydra, words, is_multirun=False, config_name=name)
    message = explain(caught.value, words)
    assert message is not None, f"not explained: {caught.value!r}"
    assert "hunter2" not in message
    assert dict(os.environ) == before
    assert list(here.iterdir()) == []
    assert not (folder.parent / CANARY).exists()
    assert not list(folder.rglob(CANARY))
    return message


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_primary_config_of_a_stranger_cannot_execute(tmp_path, monkeypatch, name):
    text, named = MALICIOUS[name] or ("", "keys and values")
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "exp.yaml").write_text(BASE + text + "\n" if text else "- 1\n")
    message = refusal(folder, monkeypatch, name="exp")
    assert named in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", GROUPS)
def test_an_option_of_a_stranger_cannot_execute(tmp_path, monkeypatch, name):
    if name == "launcher-setup":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    path, text, words, named = GROUPS[name]
    folder = tmp_path / "theirs"
    for file, content in {path: text, "any/x.yaml": "WANDB_BASE_URL: x\n"}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)
    primary = "exp" if path == "exp.yaml" else None
    message = refusal(folder, monkeypatch, *words.split(), name=primary)
    assert named in message


def test_what_a_person_types_is_theirs_to_choose(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "exp.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    register()
    words = ["+hydra.job.env_set.X=1", "hydra.run.dir=../there", "hydra/job_logging=none"]
    with open_hydra(check_config_dir(str(folder))) as hydra:
        command = check_command(hydra, words, is_multirun=False, config_name="exp")
    assert command.config.hydra.job.env_set == {"X": "1"}


OWN = {
    "env/walk.yaml": "# @package _global_\nenv: {id: CartPole-v1}\ngamma: 0.9\n"
    "tracking: {notes: 'of ${oc.env:HOME} at ${now:%Y}, ${gamma}'}\n",
    "sweeps/a.yaml": "defaults:\n  - override /hydra/launcher: stacked\n"
    "hydra:\n  launcher: {num_workers: 2}\n  sweeper: {params: {seed: 'range(1,4)'}}\n"
    "  sweep: {dir: 'outputs/mine', subdir: 's${seed}'}\n",
    "sweeps/b.yaml": "defaults:\n  - override /study: default\n  - override /study/sampler: random\n"
    "study:\n  space: {epsilon: 'interval(0.1, 0.3)'}\n  sampler: {_target_: "
    "optuna.samplers.RandomSampler}\n",
    "hydra/launcher/long.yaml": "defaults: [submitit_local]\ntimeout_min: 5\n",
}


@pytest.mark.parametrize(
    ("words", "num_jobs"),
    [
        (["env=walk"], 1), (["sweep=a"], 3),
        (["sweep=b"], 0), (["seed=1,2", "hydra/launcher=long", "hydra.launcher.timeout_min=9"], 2),
    ],
)  # fmt: skip
def test_ones_own_folder_may_hold_what_the_project_itself_does(
    tmp_path, monkeypatch, words, num_jobs
):
    if "hydra/launcher=long" in words:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for path, text in OWN.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    register()
    with open_hydra(check_config_dir(str(tmp_path))) as hydra:
        is_multirun = "seed=1,2" in words
        command = check_command(hydra, words, is_multirun=is_multirun, check_study=lambda *_: None)
    assert len(command.jobs) == num_jobs


def test_the_command_itself_executes_nothing_of_a_stranger(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name, named in (("callback-open", "_target_"), ("hydra-log-class", "hydra_logging")):
        (folder / "exp.yaml").write_text(BASE + MALICIOUS[name][0])
        for shown in ([], ["--cfg", "job"], ["--help"]):
            done = ppo_lab(tmp_path, "--config-dir", "theirs", "--config-name", "exp", *shown)
            assert done.returncode == 2
            assert named in done.stderr
            assert len(done.stderr.splitlines()) == 1
    (tmp_path / "a.pickle").write_bytes(b"")
    done = ppo_lab(tmp_path, "--experimental-rerun", "a.pickle")
    assert done.returncode == 2
    assert "resume=FOLDER" in done.stderr
    (tmp_path / "a.pickle").unlink()
    assert {path.name for path in tmp_path.iterdir()} == {"theirs"}
