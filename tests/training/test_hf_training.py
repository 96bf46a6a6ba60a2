"""A pretrained language model end to end: prompts in, samples out, reward up."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from ppo_lab.forecasting.dry_run import dry_run
from ppo_lab.networks.sequences import Sequences
from ppo_lab.training.policy import load_policy, save_policy
from ppo_lab.training.trainer import Trainer
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.trainers import config

PROMPTS = ["the", "every teacher", "a rude"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = save_checkpoint(tmp_path_factory.mktemp("model"))
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return (
        *("env=text", "env.task=prompts", f"env.prompts={prompts}", f"env.tokenizer={folder}"),
        *("env.reward=tests.helpers.checkpoints:count_gentle", "env.pretrain_steps=0"),
        *("network=hf", f"network.path={folder}", "num_envs=32", "num_steps=8", "lr=3e-3"),
        "env.kl_coef=0",
    )


@pytest.mark.parametrize(
    ("options", "gain"),
    [
        ((), 1.5),
        (("network.lora_rank=4", "lr=1e-2"), 0.4),
        (("memory=critic_free",), 0.8),
    ],
    ids=["full", "lora", "critic_free"],
)
def test_prompts_go_in_samples_come_out_and_the_reward_rises(words, options, gain):
    trainer = Trainer([config(*words, *options)])
    rewards = []
    for _ in range(9):
        trainer.iterate()
        rewards.append(float(trainer.env.text_metrics()["reward_mean"]))
    assert rewards[-1] > rewards[0] + gain
    samples = trainer.env.samples(0, 8)
    assert len(samples) == 8
    assert all(text.startswith(tuple(PROMPTS)) for text in samples)


@pytest.mark.parametrize("options", [(), ("network.lora_rank=4",)], ids=["full", "lora"])
def test_a_forecast_reads_no_weights(words, options, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    run = config(*words, *options)
    found = dry_run(run)
    trained = found.num_parameters
    per_trunk = run.network.num_trunk_parameters(run.env.check())
    assert trained["critic"] == per_trunk + 32 + 1  # features of the value head, and its bias
    assert found.peak.total > 16 * sum(trained.values())  # weight, gradient, two moments


@pytest.mark.parametrize("options", [(), ("network.lora_rank=4",)], ids=["full", "lora"])
def test_a_saved_policy_is_the_trained_one(words, options, tmp_path):
    trainer = Trainer([config(*words, *options)])
    trainer.iterate()
    save_policy(tmp_path, trainer.config, trainer.model, {}, spec=trainer.spec)
    policy = load_policy(tmp_path)
    tokens = torch.tensor([5, 9, 12, 7, 30, 11]).view(1, 2, 3, 1)
    logits = (model.policy(Sequences(tokens, None)) for model in (trainer.model, policy._model))
    torch.testing.assert_close(*logits)
    texts = policy.generate(["every teacher"], num_texts=4, seed=1)
    assert all(text.startswith("every teacher") for text in texts)
