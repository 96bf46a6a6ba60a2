"""A tokenizer of Hugging Face's transformers, made and saved by the test."""

import pytest

from ppo_lab.envs.text.config import TextConfig, TextTaskName
from ppo_lab.envs.text.tokenizers import PretrainedTokenizer
from ppo_lab.utils.errors import ConfigError

MINE = "tests.envs.text.user_rewards"


def save_tokenizer(folder, **special):
    """Save a tokenizer of five words in ``folder``; return the path."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "once": 3, "upon": 4}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", **special
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "once upon"}\n')
    return str(file)


def test_a_saved_tokenizer_encodes_prompts_and_needs_a_reward(tmp_path, prompts):
    folder = save_tokenizer(tmp_path / "saved", bos_token="<s>", eos_token="</s>")
    tokenizer = PretrainedTokenizer(folder)
    assert (tokenizer.size, tokenizer.pad, tokenizer.end) == (5, 2, 2)  # no pad: the end's
    assert tokenizer.encode("once upon") == [1, 3, 4]
    assert tokenizer.decode([1, 3, 4, 2]) == "once upon"
    options = {"task": TextTaskName.prompts, "prompts": prompts, "tokenizer": folder}
    mine = f"{MINE}:length"
    assert TextConfig(**options, reward=mine, pretrain_steps=0).check().num_tokens == 5
    with pytest.raises(ConfigError, match=r"env.reward=None: env.tokenizer needs a reward"):
        TextConfig(**options, pretrain_steps=0).check()
    with pytest.raises(ConfigError, match=r"env.pretrain_steps=.*no corpus"):
        TextConfig(**options, reward=mine).check()


def test_a_tokenizer_must_be_a_folder_with_a_token_for_the_end(tmp_path, prompts):
    with pytest.raises(ConfigError, match=r"env.tokenizer=gpt2: there is no such folder"):
        PretrainedTokenizer("gpt2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        PretrainedTokenizer(str(tmp_path / "empty"))
    folder = save_tokenizer(tmp_path / "endless", bos_token="<s>")
    with pytest.raises(ConfigError, match="has no token for the end"):
        PretrainedTokenizer(folder)


def test_an_empty_prompt_needs_a_token_for_the_beginning(tmp_path):
    folder = save_tokenizer(tmp_path / "saved", eos_token="</s>")
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "upon"}\n{"prompt": ""}')
    config = TextConfig(task=TextTaskName.prompts, prompts=str(file), tokenizer=folder)
    with pytest.raises(ConfigError, match="line 2: an empty text"):
        config.check()


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'ppo_lab\[text\]'"):
        PretrainedTokenizer(str(tmp_path))
