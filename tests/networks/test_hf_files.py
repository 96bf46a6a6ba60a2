"""Folders, options and environments that a pretrained model cannot have are refused in a line."""

import socket

import pytest

from ppo_lab.envs.base import DiscreteActions, EnvSpec
from ppo_lab.networks import HfConfig
from ppo_lab.networks.hf import BaseDtype
from ppo_lab.utils.errors import ConfigError
from tests.helpers.checkpoints import SPEC, build, save_checkpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("model"), "llama", tie_word_embeddings=False)


def test_nothing_is_asked_of_the_network(llama, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    build(llama)


@pytest.mark.parametrize(
    ("options", "key", "told"),
    [
        ({"path": ""}, "network.path", "name the folder"),
        ({"path": "nowhere/at/all"}, "network.path", "there is no such folder"),
        ({"lora_rank": -1}, "network.lora_rank", "must be >= 0"),
        ({"lora_rank": 2, "lora_alpha": 0.0}, "network.lora_alpha", "> 0"),
        ({"base_dtype": BaseDtype.bfloat16}, "network.base_dtype", "needs adapters"),
    ],
)
def test_unusable_options_are_refused_in_a_line(llama, options, key, told):
    with pytest.raises(ConfigError, match=told) as caught:
        HfConfig(**({"path": str(llama)} | options)).check()
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


OF_CODE = '{"model_type": "x", "auto_map": {"AutoConfig": "x.X"}}'


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "no config.json"),
        ({"config.json": "{}"}, "no weights as .*safetensors"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "other formats can hold code"),
        ({"adapter_config.json": "{}"}, "holds adapters"),
    ],
)
def test_a_folder_without_a_checkpoint_is_refused(tmp_path, files, told):
    write(tmp_path, files)
    with pytest.raises(ConfigError, match=told) as caught:
        HfConfig(path=str(tmp_path)).check()
    assert caught.value.key == "network.path"


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": "{}"},
        {"config.json": "{"},
        {"config.json": OF_CODE, "x.py": "raise SystemExit"},
    ],
)
def test_a_config_of_no_known_model_is_refused_in_a_line(tmp_path, files):
    write(tmp_path, files | {"model.safetensors": ""})
    network = HfConfig(path=str(tmp_path))
    network.check()
    with pytest.raises(ConfigError, match="no causal language model") as caught:
        network.check_env(SPEC)
    assert "\n" not in str(caught.value)


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (EnvSpec(4, DiscreteActions(2)), "reads tokens"),
        (EnvSpec(1, DiscreteActions(1000), num_tokens=1000), "the environment has 1,000"),
        (EnvSpec(1, DiscreteActions(9), num_tokens=9, max_episode_steps=65), "up to 64 tokens"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(llama, spec, told):
    with pytest.raises(ConfigError, match=told):
        HfConfig(path=str(llama)).check_env(spec)


def test_a_target_that_is_no_layer_is_refused_with_those_there_are(llama):
    network = HfConfig(path=str(llama), lora_rank=2, lora_targets=["c_attn"])
    with pytest.raises(ConfigError, match="c_attn is no linear layer; there are down_proj, "):
        network.num_trunk_parameters(SPEC)


def test_damaged_weights_are_refused(tmp_path):
    save_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ConfigError, match="no causal language model"):
        build(tmp_path)


def test_capped_logits_are_refused(tmp_path, llama):
    options = {"num_hidden_layers": 1, "head_dim": 8, "final_logit_softcapping": 1.0}
    save_checkpoint(tmp_path, "gemma2", **options)
    with pytest.raises(ConfigError, match="not linear"):
        build(tmp_path)


def test_without_the_extra_the_line_says_how_to_install_it(llama, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'ppo_lab\[text\]'"):
        HfConfig(path=str(llama)).check()
