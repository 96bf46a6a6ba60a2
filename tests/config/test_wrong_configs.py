"""A corpus of wrong command lines: each is refused in a line that names key, value and remedy."""

import copy
import shlex
from contextlib import contextmanager

import pytest

from ppo_lab.config.compose import check_command, compose_command, load, register
from ppo_lab.config.composer import Composer, open_hydra, parse
from ppo_lab.config.error_messages import explain
from ppo_lab.config.grid import check_dimensions
from ppo_lab.studies.command import check_study
from ppo_lab.utils.errors import ConfigError
from tests.config.wrong_configs import (
    LONG,
    REFUSED,
    REFUSED_COMMANDS,
    REFUSED_GRIDS,
    REFUSED_STUDIES,
)
from tests.helpers.commands import ppo_lab
from tests.helpers.trainers import default_composer


@pytest.fixture(scope="module", autouse=True)
def empty(tmp_path_factory):
    """An empty folder, in which the commands of this file are checked, and stay without a trace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("empty"))
        yield
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def hydra(empty):
    """Hydra as the command opens it, except that it reads the files of a job once."""
    register()
    with open_hydra() as opened:
        loader, known = opened.config_loader, {}
        read = loader.load_sweep_config

        def read_once(command, typed):
            key = command.study is None, str(command.hydra.overrides.hydra), *typed
            if key not in known:
                known[key] = read(command, typed)
            return copy.deepcopy(known[key])

        loader.load_sweep_config = read_once
        yield opened


@pytest.fixture(scope="module")
def studies(hydra):
    """The composer of a study's command."""
    return Composer(hydra.config_loader, compose_command(hydra, ["study=default"]))


@contextmanager
def refused(words, *named):
    """Check that what is inside refuses ``words`` in one line with all that is ``named``."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of every kind
        yield
    message = explain(caught.value, words)
    assert message is not None, f"not explained: {caught.value!r}"
    assert [text for text in named if text not in message] == []
    assert len(message.splitlines()) == 1


def check(hydra, command, *named, is_multirun=False):
    """Check that a command is refused in one line with all that is ``named``."""
    words = shlex.split(command)
    with refused(words, *named):
        check_command(hydra, words, is_multirun=is_multirun, check_study=check_study)


def rows(table):
    return pytest.mark.parametrize(
        ("command", "named", "allowed"), table, ids=[row[0] for row in table]
    )


@rows(REFUSED)
def test_a_wrong_value_is_refused(command, named, allowed):
    words = shlex.split(command)
    with refused(words, named, allowed), default_composer().composed(words) as composed:
        load(composed)


@rows(REFUSED_COMMANDS)
def test_a_wrong_command_is_refused(hydra, command, named, allowed):
    check(hydra, command, named, allowed)


@rows(REFUSED_GRIDS)
def test_a_grid_is_refused(hydra, command, named, allowed):
    check(hydra, command, named, allowed, is_multirun=True)


@rows(REFUSED_STUDIES)
def test_a_study_is_refused(hydra, studies, command, named, allowed):
    words = ["study=default", "epsilon=interval(0.1,0.3)", command]
    with refused(words, named, allowed):
        fixed = [word for word in words if not parse(word).is_sweep_override()]
        with studies.composed(fixed) as composed:
            composed.hydra.overrides.task = words
            check_dimensions(composed, words)
            check_study(composed, hydra.config_loader)


@pytest.mark.parametrize(
    "word",
    [
        "+env.kwargs.url=http://me:hunter2@host/x", "tracking.notes=https://me:hunter2@host",
        "name=hf_hunter2hunter2hunter2", "+hydra.job.env_set.WANDB_API_KEY=hunter2",
    ],
)  # fmt: skip
def test_a_credential_is_refused_and_not_repeated(hydra, word):
    words = ["env=gymnasium", "env.id=CartPole-v1", word]
    with pytest.raises(ConfigError) as caught:
        check_command(hydra, words, is_multirun=False)
    message = explain(caught.value, words)
    assert "hunter2" not in message
    assert "..." in message


def test_a_secret_variable_is_not_copied_into_the_config(hydra, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hunter2hunter2")
    line = "ppo_lab: hydra.job.env_set.WANDB_API_KEY=...: sounds secret"
    check(hydra, "hydra.job.env_copy=[WANDB_API_KEY]", line)


def test_a_run_larger_than_the_machine_is_refused(hydra, monkeypatch):
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**18}  # 1 GiB
    monkeypatch.setattr("ppo_lab.config.checks.os.sysconf", sizes.get)
    # Two networks of 20,000 x 20,000 and (4 + 1 + 1) x 20,000 parameters, 16 B each: 11.9 GiB.
    line = "network=...: needs 11.9 GiB of memory or more; this machine has 1.0 GiB"
    check(hydra, "device=cpu network.hidden=[20000,20000]", line)
    # 2^25 rows of 4 observations and six numbers, 4 B each.
    many = "device=cpu network=tiny num_envs=32768 num_steps=1024 total_steps=40000000"
    check(hydra, many, "num_envs=32768: needs 1.2 GiB of memory or more")


def test_a_folder_whose_name_is_too_long_is_refused(hydra):
    command = f"{LONG} {LONG.replace('notes', 'entity')} seed=1,2"
    command += " 'hydra.sweep.subdir=${hydra.job.override_dirname}'"
    check(hydra, command, "a folder's name has at most 255 bytes", is_multirun=True)


def test_a_key_of_the_sweep_that_is_fixed_leaves_the_search_and_this_is_said(hydra, caplog):
    words = ["sweep=ppo", "lr=1e-3"]
    assert check_command(hydra, words, is_multirun=False, check_study=check_study).jobs == []
    assert "lr=1e-3 is fixed: this study no longer searches lr" in caplog.text


@pytest.mark.parametrize(
    "arguments", [["epslon=0.1"], ["epsilon=0.1,-1", "-m"], ["name=${unused_dir:outputs/runs/x}"]]
)
def test_the_command_exits_with_2_and_leaves_nothing_behind(tmp_path, arguments):
    done = ppo_lab(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ppo_lab: ")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
