"""TextConfig: wrong settings and their messages, the user's reward, and a foreign config's."""

import io
import json
from dataclasses import replace

import pytest

from ppo_lab.envs.base import DiscreteActions
from ppo_lab.envs.config import Backend, EnvConfig
from ppo_lab.envs.text.config import TextConfig, TextTaskName
from ppo_lab.play import _confirm_import, _read_env_config
from ppo_lab.utils.errors import ConfigError

MINE = "tests.envs.text.user_rewards"
PROMPTS = TextTaskName.prompts


def test_a_text_environment_says_how_many_tokens_there_are():
    spec = TextConfig().check()
    assert (spec.observation_size, spec.num_tokens) == (1, 41)
    assert spec.actions == DiscreteActions(41)
    assert TextConfig(task=TextTaskName.arithmetic).check().num_tokens == 15
    assert TextConfig.whole_episodes
    assert not EnvConfig.whole_episodes


@pytest.mark.parametrize(
    ("options", "key", "told"),
    [
        ({"normalize_observations": True}, "env.normalize_observations", "no effect on texts"),
        ({"normalize_rewards": True}, "env.normalize_rewards", "no effect on texts"),
        ({"max_episode_steps": 5}, "env.max_episode_steps", "no effect on texts"),
        ({"kwargs": {"a": 1}}, "env.kwargs", "no effect on texts"),
        ({"backend": Backend.gymnasium}, "env.backend", "no effect on texts"),
        ({"prompts": "a.jsonl"}, "env.prompts", "needs env.task=prompts"),
        ({"tokenizer": "folder"}, "env.tokenizer", "needs env.task=prompts"),
        ({"task": PROMPTS}, "env.prompts", "needs a JSONL file"),
        ({"task": PROMPTS, "prompts": "none.jsonl"}, "env.prompts", "no such file"),
        ({"kl_coef": -1.0}, "env.kl_coef", ">= 0"),
        ({"kl_target": 0.0}, "env.kl_target", "> 0"),
        ({"pretrain_lr": 0.0}, "env.pretrain_lr", "> 0"),
        ({"pretrain_steps": -1}, "env.pretrain_steps", ">= 0"),
        ({"pretrain_batch": 0}, "env.pretrain_batch", ">= 1"),
        ({"samples_every": -1}, "env.samples_every", ">= 0"),
        ({"max_summand": 100}, "env.max_summand", "<= 99"),
        ({"timeout_s": 0.0}, "env.timeout_s", "> 0"),
        ({"reward": "length"}, "env.reward", "must be module:function"),
        ({"reward": f"{MINE}:"}, "env.reward", "must be module:function"),
        ({"reward": f"{MINE}:a:b"}, "env.reward", "must be module:function"),
        ({"reward": "no_such_module:f"}, "env.reward", "PYTHONPATH=FOLDER"),
        ({"reward": f"{MINE}:lenght"}, "env.reward", "has no function lenght"),
        ({"reward": f"{MINE}:not_callable"}, "env.reward", "has no function not_callable"),
        ({"reward": f"{MINE}:raising"}, "env.reward", "KeyError: 'no such model' (tests/envs"),
        ({"reward": f"{MINE}:nothing"}, "env.reward", "one for each of the 3 texts, returned None"),
        ({"reward": f"{MINE}:words"}, "env.reward", "returned a list of 3 values"),
        ({"reward": f"{MINE}:short"}, "env.reward", "returned 2 numbers for 3 texts"),
        ({"reward": f"{MINE}:nan"}, "env.reward", "returned nan for 'the'"),
        ({"reward": f"{MINE}:slow", "timeout_s": 0.5}, "env.reward", "within env.timeout_s"),
    ],
)
def test_a_setting_that_cannot_be_used_is_told_with_its_key(options, key, told):
    with pytest.raises(ConfigError) as error:
        TextConfig(**options).check()
    assert error.value.key == key
    assert told in str(error.value)


@pytest.mark.parametrize("name", ["length", "as_array"])
def test_a_good_reward_of_the_users_is_accepted(name):
    assert TextConfig(reward=f"{MINE}:{name}").check().num_tokens == 41


@pytest.mark.parametrize(
    ("options", "least"),
    [({}, 9), ({"task": TextTaskName.arithmetic}, 9)],
)
def test_a_rollout_must_have_room_for_the_longest_text(options, least):
    config = TextConfig(**options)
    config.check_rollout(least)
    with pytest.raises(ConfigError, match=f"num_steps={least - 1}: must be >= {least}"):
        config.check_rollout(least - 1)


def test_a_rollout_must_have_room_for_the_longest_prompt(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": " ".join(["the"] * 20)}))
    config = TextConfig(task=PROMPTS, prompts=str(file))
    config.check_rollout(21)
    with pytest.raises(ConfigError, match="a prompt has 21 tokens"):
        config.check_rollout(20)


def test_play_asks_before_a_foreign_config_imports_a_reward(tmp_path, monkeypatch):
    file = tmp_path / "config.yaml"
    file.write_text("env:\n  id: text\n  task: grammar\n  reward: evil.module:pay\n")
    config = _read_env_config(file)
    assert isinstance(config, TextConfig)
    assert config.imported_module() == "evil.module"
    monkeypatch.setattr("sys.stdin", io.StringIO("y"))  # no terminal, where a person could answer
    with pytest.raises(ValueError, match=r"imports the Python module evil\.module.*--trust"):
        _confirm_import(config, is_trusted=False)
    _confirm_import(config, is_trusted=True)
    _confirm_import(replace(config, reward=None), is_trusted=False)
    assert EnvConfig(id="evil:Walk-v0").imported_module() == "evil"
