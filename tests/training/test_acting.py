"""Policies with a memory act as in training; policies for texts write them."""

import functools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ppo_lab import load_policy
from ppo_lab.networks.sequences import Sequences
from ppo_lab.play import evaluate
from ppo_lab.training.policy import save_policy
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import config

TINY_TEXT = (
    *("network=gpt_tiny", "network.depth=2", "network.width=16", "network.num_heads=2"),
    *("env.pretrain_steps=0", "num_envs=8", "num_steps=10", "total_steps=100"),
)
MASKED = (
    *("env=cartpole_masked", "network.hidden=16", "num_envs=8", "num_steps=16", "num_epochs=1"),
    *("env.max_episode_steps=16", "total_steps=128", "env.normalize_observations=false"),
)
RUNS = {
    "lstm": ("network=lstm", *MASKED),
    "gru": ("network=gru", *MASKED, "memory=shared_trunk"),
    "lstm, critic-free": ("network=lstm", *MASKED, "memory=critic_free"),
    "text": ("env=text", *TINY_TEXT),
    "text, critic-free": ("env=text", *TINY_TEXT, "memory=critic_free"),
    "arithmetic": ("env=arithmetic", *TINY_TEXT, "memory=shared_trunk"),
}
WITH_MEMORY = ("lstm", "gru", "lstm, critic-free")
TEXTS = ("text", "text, critic-free", "arithmetic")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that gives a trainer after an iteration, and where its policy is."""

    @functools.cache
    def train(kind):
        trainer, folder = Trainer([config(*RUNS[kind])]), tmp_path_factory.mktemp("run")
        trainer.iterate()
        trainer.close()
        state = trainer.env.state_dict()
        save_policy(folder, trainer.config, trainer.model, state, spec=trainer.spec)
        return trainer, folder

    return train


@pytest.fixture(scope="module")
def run(saved):
    """Return a function that loads the policy of a kind of run, beside its trainer."""

    def load(kind):
        trainer, folder = saved(kind)
        return load_policy(folder), trainer

    return load


@pytest.mark.parametrize("kind", WITH_MEMORY)
def test_a_policy_with_a_memory_acts_as_if_it_read_all_since_the_episode_began(run, kind):
    policy, trainer = run(kind)
    num, steps = 5, 8
    generator = torch.Generator().manual_seed(0)
    observations = torch.randn(1, num, steps, 2, generator=generator)
    starts = torch.rand(1, num, steps, generator=generator) < 0.3
    parameters = trainer.model.policy(Sequences(observations, starts)).view(num, steps, -1)
    expected = parameters.argmax(-1)
    assert len(expected.unique()) == 2
    policy.reset()
    actions = [
        policy.act(observations[0, :, t].numpy(), starts=starts[0, :, t].numpy())
        for t in range(steps)
    ]
    assert np.stack(actions, 1).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", WITH_MEMORY)
def test_reset_forgets_what_was_seen(run, kind):
    policy, _ = run(kind)
    seen = np.random.default_rng(1).normal(size=(4, 64, 2))

    def parameters():
        for step in seen:
            policy.act(step)
        return policy._memory[0].clone()

    policy.reset()
    first = parameters()
    assert not torch.equal(parameters(), first)  # goes on
    policy.reset()
    assert torch.equal(parameters(), first)
    policy.act(seen[0], starts=True)
    for step in seen[1:]:
        policy.act(step)
    assert torch.equal(policy._memory[0], first)


def test_a_batch_of_another_size_is_refused_until_reset(run):
    policy, _ = run("lstm")
    policy.reset()
    policy.act(np.zeros((3, 2)))
    for _ in range(2):
        with pytest.raises(ValueError, match="1 observations after a batch of 3; call reset"):
            policy.act(np.zeros(2))
    policy.reset()
    assert policy.act(np.zeros(2)) in (0, 1)


@pytest.mark.parametrize("kind", RUNS)
def test_only_a_policy_with_a_critic_has_one_in_its_file(saved, kind):
    trainer, folder = saved(kind)
    names = load_file(folder / "checkpoint" / "model.safetensors").keys()
    of_critic = [name for name in names if "critic" in name or "value" in name]
    assert bool(of_critic) == trainer.config.memory.has_critic


@pytest.mark.parametrize("kind", TEXTS)
def test_greedy_texts_are_those_of_whole_forward_passes_without_a_cache(run, kind):
    policy, trainer = run(kind)
    task = trainer.config.env.make_task()
    prompts = [task.tokenizer.decode(tokens) for tokens in task.prompts[:6]]
    texts = policy.generate(prompts, greedy=True)
    assert len(texts) == len(prompts)
    for prompt, text in zip(prompts, texts, strict=True):
        tokens = task.tokenizer.encode(prompt)
        while len(tokens) <= trainer.config.num_steps and task.tokenizer.end not in tokens[1:]:
            read = Sequences(torch.tensor(tokens).view(1, 1, -1, 1), None)
            tokens.append(int(trainer.model.policy(read)[0, -1].argmax()))
        assert text == task.tokenizer.decode(tokens)


def test_sampled_texts_follow_from_the_seed_and_go_on_from_their_prompts(run):
    policy, _ = run("text")
    prompts = ["the", "a gentle robot"]
    texts = policy.generate(prompts, num_texts=20, seed=3)
    assert all(text.startswith(prompts[i % 2]) for i, text in enumerate(texts))
    assert len(set(texts)) > 10
    assert policy.generate(prompts, num_texts=20, seed=3) == texts
    assert policy.generate(prompts, num_texts=20, seed=4) != texts
    # The task's own: sentences begin with a determiner.
    assert [text.split()[0] for text in policy.generate()] == ["the", "a", "this", "every"]
    assert policy.generate([]) == []


def test_what_cannot_be_written_is_refused(run):
    policy, trainer = run("text")
    with pytest.raises(ValueError, match="unknown word 'dragon'"):
        policy.generate(["the dragon"])
    longest = " ".join(["the"] * trainer.config.num_steps)
    with pytest.raises(ValueError, match="a prompt has 11 tokens; this policy reads 10"):
        policy.generate([longest])
    with pytest.raises(ValueError, match="only env=text writes texts"):
        run("lstm")[0].generate(["the"])


def test_texts_end_after_their_longest_and_begin_together(run):
    policy, trainer = run("text")
    policy.reset()
    tokens = np.ones((2, 1), np.int64)
    policy.act(tokens)
    with pytest.raises(ValueError, match="texts begin together"):
        policy.act(tokens, starts=np.array([True, False]))
    for _ in range(trainer.config.num_steps - 1):
        policy.act(tokens)
    with pytest.raises(ValueError, match="at most 10 tokens after their first: call reset"):
        policy.act(tokens)
    assert policy.act(tokens, starts=True).shape == (2,)


@pytest.mark.parametrize("kind", [*WITH_MEMORY, *TEXTS])
def test_evaluated_episodes_are_those_of_the_environment(run, kind):
    policy, trainer = run(kind)
    env = trainer.config.env
    played = evaluate(
        policy, env, num_episodes=6, seed=1, deterministic=kind not in TEXTS, max_steps=500
    )
    assert len(played.returns) == 6
    if kind in WITH_MEMORY:
        assert played.texts == []
        assert played.metrics == {}
        assert all(1 <= value <= 16 for value in played.returns)
        return
    task = env.make_task()
    assert played.returns == task.rewards(played.texts)
    quality = task.quality(played.texts)
    assert {name: played.metrics[name] for name in quality} == pytest.approx(quality)
    assert played.metrics["reward_mean"] == pytest.approx(np.mean(played.returns))
