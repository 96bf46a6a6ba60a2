"""Every wrong value is refused in one or two lines that name key, value and what is allowed."""

import pytest

from ppo_lab.config.compose import check_jobs, register
from ppo_lab.config.error_messages import explain
from ppo_lab.config.study import RENAMED_KEYS, StudyConfig
from tests.helpers.commands import ppo_lab


def explained(*overrides, **options):
    """Return the message for a command line that is refused."""
    register()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - explain() must know every kind
        check_jobs(overrides, **options)
    message = explain(caught.value, overrides)
    assert message is not None, f"not explained: {caught.value!r}"
    return message


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = explained("device=cuda")
    assert "device=cuda" in message
    assert "device=cpu" in message


def test_an_error_of_our_own_making_is_not_explained_away():
    assert explain(RuntimeError("a bug"), ["epsilon=0.1"]) is None


def test_hydra_full_error_still_gives_the_traceback(tmp_path):
    done = ppo_lab(tmp_path, "epsilon=-1", HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


def test_a_secret_in_the_config_is_refused_without_repeating_it():
    message = explained("+env.kwargs.api_key=s3cret")
    assert "env.kwargs.api_key" in message
    assert "s3cret" not in message


def test_a_nested_secret_is_refused_too():
    message = explained("+env.kwargs.auth={token:s3cret}")
    assert "env.kwargs.auth=...: holds a password or token" in message
    assert "s3cret" not in message


@pytest.mark.parametrize(
    ("yaml", "allowed"),
    [
        ("env: {id: [", "cannot be read"),
        ("# @package _global_\nenv:\n  idd: CartPole-v1\n", "idd"),
    ],
)
def test_a_broken_yaml_of_the_users_own_is_refused(tmp_path, yaml, allowed):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "mine.yaml").write_text(yaml)
    assert allowed in explained("env=mine", config_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("config_dir", "config_name", "named"),
    [
        ("/no/such/folder", None, "--config-dir=/no/such/folder"),
        (None, "nope", "--config-name=nope"),
    ],
)
def test_config_folders_and_names_that_are_not_there_are_refused(config_dir, config_name, named):
    assert named in explained(config_dir=config_dir, config_name=config_name)


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
def test_old_keys_on_the_command_line_are_refused_with_all_their_new_names(prefix):
    for old, new in RENAMED_KEYS.items():
        assert hasattr(StudyConfig(), new.removeprefix("study."))
        assert not hasattr(StudyConfig(), old.removeprefix("study."))
    message = explained("study=default", *(f"{prefix}{old}=4" for old in RENAMED_KEYS))
    pairs = ", ".join(f"{new} for {old}" for old, new in RENAMED_KEYS.items())
    assert message == f"ppo_lab: {prefix}study.num_slots=4: was renamed; write {pairs}"


def test_a_key_below_an_old_one_is_refused_with_its_new_name():
    message = explained("study=default", "+study.when.lr='epsilon=0.1,0.2'")
    assert message == (
        "ppo_lab: study.when.lr='epsilon=0.1,0.2': "
        "was renamed; write study.conditions.lr for study.when.lr"
    )


def test_old_keys_in_a_sweep_file_are_refused_with_its_path(tmp_path):
    (tmp_path / "sweeps").mkdir()
    path = tmp_path / "sweeps" / "mine.yaml"
    path.write_text("defaults:\n  - override /study: default\nstudy:\n  when: 1\n  start: 2\n")
    message = explained("sweep=mine", config_dir=str(tmp_path))
    pairs = "study.conditions for study.when, study.enqueue for study.start"
    assert message == f"ppo_lab: {path}: study.when=...: was renamed; write {pairs}"


def test_an_unknown_key_in_a_sweep_file_is_refused_with_its_path(tmp_path):
    (tmp_path / "sweeps").mkdir()
    path = tmp_path / "sweeps" / "mine.yaml"
    path.write_text("defaults:\n  - override /study: default\nstudy:\n  num_trails: 3\n")
    message = explained("sweep=mine", config_dir=str(tmp_path))
    assert message == (
        f"ppo_lab: num_trails in {path}: there is no such key; did you mean study.num_trials?"
    )


@pytest.mark.parametrize("study", ["", "  - override study: default\n"])
def test_an_old_key_in_a_saved_config_is_refused_with_its_new_name(study, tmp_path):
    path = tmp_path / "best.yaml"
    path.write_text(f"defaults:\n  - config\n{study}  - _self_\nstudy:\n  num_marks: 3\n")
    message = explained(config_dir=str(tmp_path), config_name="best")
    assert message == (
        f"ppo_lab: {path}: study.num_marks=...: was renamed; "
        "write study.num_reports for study.num_marks"
    )
