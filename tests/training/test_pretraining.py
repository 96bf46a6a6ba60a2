"""What a policy for texts starts from, and the file that keeps it."""

import logging

import pytest
import torch

from ppo_lab.networks.sequences import Sequences
from ppo_lab.training import pretraining
from ppo_lab.training.pretraining import is_text_live, new_actor, pretrained, start_from
from tests.helpers.texts import text_config
from tests.helpers.trainers import CPU


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of its own; lists what is pretrained."""
    monkeypatch.setenv("PPO_LAB_CACHE", str(tmp_path / "cache"))
    calls, train = [], pretraining._train
    monkeypatch.setattr(pretraining, "_train", lambda *args: calls.append(1) or train(*args))
    return tmp_path / "cache", calls


def of(*overrides):
    config = text_config("env.pretrain_steps=2", *overrides)
    return pretrained(config, config.check_env())


def test_a_reference_is_made_once_and_then_read(cache):
    first, again = of(), of()
    assert len(cache[1]) == 1
    assert first.digest == again.digest
    for name, tensor in first.weights.items():
        assert torch.equal(tensor, again.weights[name])
        assert len(tensor) == 1


@pytest.mark.parametrize(
    "changed",
    [
        "env.pretrain_steps=3",
        "env.pretrain_lr=0.01",
        "env.pretrain_batch=8",
        "env.pretrain_seed=1",
        "network.width=8",
        "network.positions=rotary",
        "dtype=float64",
    ],
)
def test_what_the_weights_depend_on_makes_another_file(cache, changed):
    of()
    of(changed)
    assert len(cache[1]) == 2
    assert len(list(cache[0].iterdir())) == 2


@pytest.mark.parametrize("same", ["seed=5", "lr=0.1", "num_steps=12", "env.kl_coef=0.1"])
def test_what_they_do_not_depend_on_finds_the_same_file(cache, same):
    assert of().digest == of(same).digest
    assert len(cache[1]) == 1


@pytest.mark.parametrize("damage", ["empty", "half", "bit", "others may write"])
def test_a_damaged_file_is_made_again_with_a_warning(cache, damage, caplog):
    before = of()
    (path,) = cache[0].iterdir()
    content = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "half":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.chmod(0o666)
    with caplog.at_level(logging.WARNING):
        assert of().digest == before.digest
    assert "pretrained again" in caplog.text
    assert path.read_bytes() == content
    caplog.clear()
    of()
    assert len(cache[1]) == 2
    assert not caplog.text


def test_without_a_cache_the_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PPO_LAB_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        of()
    assert "not kept for later runs" in caplog.text


def test_without_steps_it_is_a_new_network_and_nothing_is_kept(cache):
    found = of("env.pretrain_steps=0")
    config = text_config("env.pretrain_steps=0")
    fresh = new_actor(config, config.check_env(), CPU)
    for name, parameter in fresh.named_parameters():
        assert torch.equal(parameter, found.weights[name])
    assert (cache[1], cache[0].exists()) == ([], False)


def test_pretraining_lowers_the_cross_entropy_of_texts_that_it_has_not_read():
    """From that of all 41 tokens alike; the corpus's own is below 2 nats."""
    config = text_config("env.pretrain_lr=0.01", "env.pretrain_steps=60")
    spec, task = config.check_env(), config.env.make_task()
    model = new_actor(config, spec, CPU)
    tokens = task.corpus_tokens(99, 100, task.longest)
    with torch.no_grad():
        before = pretraining._cross_entropy(model, tokens, task.tokenizer)
        start_from(model, pretrained(config, spec))
        after = pretraining._cross_entropy(model, tokens, task.tokenizer)
    assert before.item() == pytest.approx(torch.tensor(41.0).log().item(), abs=0.02)
    assert after < 2.6


def test_the_cross_entropy_is_the_mean_over_tokens_up_to_the_end():
    config = text_config()
    spec, task = config.check_env(), config.env.make_task()
    model = new_actor(config, spec, CPU)
    start_from(model, pretrained(config, spec))
    tokens = task.corpus_tokens(3, 2, task.longest + 3)
    nats = []
    with torch.no_grad():
        for row in tokens.tolist():
            length = row.index(task.tokenizer.end) + 1
            read = torch.tensor(row[: length - 1]).view(1, 1, -1, 1)
            logits = model.policy(Sequences(read, None))[0].log_softmax(-1)
            nats += [-logits[i, row[i + 1]].item() for i in range(length - 1)]
        found = pretraining._cross_entropy(model, tokens, task.tokenizer)
    assert found.item() == pytest.approx(sum(nats) / len(nats), rel=1e-5)


@pytest.mark.parametrize(("pad", "expected"), [(0, [1, 1, 0, 0]), (2, [1, 1, 0, 0])])
def test_tokens_after_the_end_are_not_learned(pad, expected):
    row = torch.tensor([[5, 2, pad, pad]])
    assert is_text_live(row, 2, pad).long().tolist() == [expected]


def test_a_text_that_was_cut_off_is_learned_as_far_as_it_goes():
    assert is_text_live(torch.tensor([[5, 6, 0, 0]]), 2, 0).tolist() == [[True, True, False, False]]


def test_other_environments_start_at_random():
    from tests.helpers.trainers import config

    base = config()
    assert pretrained(base, base.check_env()) is None
