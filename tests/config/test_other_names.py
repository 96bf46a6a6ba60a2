"""Options of CleanRL and Stable-Baselines3 are answered with this package's own."""

import pytest

from ppo_lab.config.help import keys
from ppo_lab.config.other_names import _OTHERWISE, _SAME, check_flags, refuse_other_names
from ppo_lab.utils.errors import ConfigError
from tests.helpers.commands import ppo_lab


def test_no_other_name_is_a_key_and_every_answer_names_one():
    names = {key.name for key in keys()}
    assert not names & (_SAME.keys() | _OTHERWISE.keys())
    assert set(_SAME.values()) <= names


def test_all_other_names_of_a_command_are_answered_at_once():
    with pytest.raises(ConfigError) as error:
        refuse_other_names({"clip_range": "0.1", "n_epochs": "10", "batch_size": "64", "lr": "1"})
    assert str(error.value) == (
        "clip_range=0.1: write epsilon=0.1; for n_epochs write num_epochs=10; for batch_size write "
        "num_minibatches = num_envs * num_steps / batch_size (SB3's; CleanRL's is "
        "num_envs * num_steps)"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--epsilon", "0.1"], "--epsilon=0.1: keys have no dashes; write epsilon=0.1"),
        (["--lr=3e-4"], "--lr=3e-4: keys have no dashes; write lr=3e-4"),
        (["--clip-coef", "0.1", "--seed", "2"],
         "--clip-coef=0.1: keys have no dashes; write epsilon=0.1; write seed=2"),
        (["--track", "seed=1"], "--track=true: keys have no dashes; write tracking=wandb, or "
         "tracking=local for files only"),
    ],
)  # fmt: skip
def test_flags_are_answered_with_keys(words, line):
    with pytest.raises(ConfigError) as error:
        check_flags(words, words)
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--epsilon", "0.1"], "ppo_lab: --epsilon=0.1: keys have no dashes; write epsilon=0.1"),
        (["clip_coef=0.1"], "ppo_lab: clip_coef=0.1: write epsilon=0.1"),
        (["study/sampler=random"], "ppo_lab: study/sampler=random: there is no study to set this "
         "of; add study=default or a sweep=..."),
        (["study.num_trials=3"], "ppo_lab: study.num_trials=3: there is no study to set this of; "
         "add study=default or a sweep=..."),
    ],
)  # fmt: skip
def test_a_command_is_answered_in_one_line(tmp_path, words, line):
    done = ppo_lab(tmp_path, *words)
    assert (done.returncode, done.stderr.strip(), done.stdout) == (2, line, "")
    assert list(tmp_path.iterdir()) == []
