"""Pretrained language models: equal to transformers' own, with a cache, with adapters, saved."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppo_lab.networks import HfConfig
from ppo_lab.networks.bound import LowRank
from ppo_lab.networks.hf import BaseDtype
from ppo_lab.ppo.adam import LaneAdam
from ppo_lab.utils.torch_private import FakeTensor, FakeTensorMode
from tests.helpers.checkpoints import NUM_TOKENS, SPEC, build, save_checkpoint

KINDS = {
    "llama": {"tie_word_embeddings": False},
    "llama, tied": {"tie_word_embeddings": True},
    "gpt2": {},  # tied, with Conv1D layers and dropout
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        name: save_checkpoint(tmp_path_factory.mktemp("model"), name.partition(",")[0], **options)
        for name, options in KINDS.items()
    }


@pytest.fixture(params=KINDS)
def folder(request, folders):
    return folders[request.param]


@pytest.fixture
def llama(folders):
    return folders["llama"]


def tokens(num_sequences=3, num_steps=7):
    drawn = torch.Generator().manual_seed(5)
    return torch.randint(NUM_TOKENS, (1, num_sequences, num_steps, 1), generator=drawn)


def logits_of(trunk, head, given):
    features, _ = trunk.read(given, None, None)
    return head(features.flatten(1, 2)).unflatten(1, given.shape[1:3])[0]


def theirs(folder, given):
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        return model(given[0, ..., 0]).logits[..., :NUM_TOKENS]


def train(trunk, head, *, steps=3):
    parameters = [*trunk.parameters(), *head.parameters()]
    adam = LaneAdam(parameters, eps=1e-5)
    for _ in range(steps):
        logits_of(trunk, head, tokens()).logsumexp(-1).mean().backward()
        adam.step(lr=torch.tensor([0.01]), max_grad_norm=torch.tensor([1.0]))
        adam.zero_grad()
    return parameters


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_logits_are_those_of_transformers(folder, lora_rank):
    _, (trunk,), head = build(folder, lora_rank=lora_rank)
    torch.testing.assert_close(logits_of(trunk, head, tokens()), theirs(folder, tokens()))


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_reading_step_by_step_with_a_memory_is_reading_all_at_once(folder, lora_rank):
    _, (trunk,), head = build(folder, lora_rank=lora_rank)
    train(trunk, head)
    given = tokens()
    with torch.inference_mode():
        memory = trunk.empty_memory(given.shape[1], given.shape[2])
        parts = []
        for piece in given.split([1, 1, 3, 1, 1], dim=2):
            features, memory = trunk.read(piece, None, memory)
            parts.append(features)
    at_once, none = trunk.read(given, None, None)
    assert none is None
    torch.testing.assert_close(torch.cat(parts, 2), at_once.detach())


def test_full_training_trains_every_weight_and_two_copies_are_apart(folder):
    _, (actor, critic), head = build(folder, 2)
    at_first = logits_of(actor, head, tokens()).detach()
    of_critic = critic.read(tokens(), None, None)[0].detach()
    before = {name: p.detach().clone() for name, p in actor.named_parameters()}
    parameters = train(actor, head)
    assert all(parameter.shape[0] == 1 for parameter in parameters)
    whole = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in parameters) == sum(p.numel() for p in whole.parameters())
    assert not [name for name, p in actor.named_parameters() if torch.equal(p, before[name])]
    assert not torch.equal(logits_of(actor, head, tokens()), at_first)
    assert torch.equal(critic.read(tokens(), None, None)[0], of_critic)


def test_adapters_alone_are_trained_on_one_frozen_model(folder):
    _, (actor, critic), head = build(folder, 2, lora_rank=4)
    frozen = {id(buffer): buffer.clone() for buffer in actor.buffers()}
    assert frozen.keys() == {id(buffer) for buffer in critic.buffers()}
    assert not list(head.parameters())
    at_first = logits_of(actor, head, tokens()).detach()
    of_critic = critic.read(tokens(), None, None)[0].detach()
    train(actor, head)
    assert all(torch.equal(buffer, frozen[id(buffer)]) for buffer in actor.buffers())
    assert not torch.allclose(logits_of(actor, head, tokens()), at_first)
    assert torch.equal(critic.read(tokens(), None, None)[0], of_critic)
    assert {name.rpartition("/")[2] for name, _ in actor.named_parameters()} == {"down", "up"}


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_deep_copy_is_a_reference_that_stays_as_it_was(folder, lora_rank):
    _, (actor,), head = build(folder, lora_rank=lora_rank)
    actor.read(tokens(), None, None)
    reference, its_head = copy.deepcopy((actor, head))
    before = logits_of(reference, its_head, tokens()).detach()
    train(actor, head)
    assert torch.equal(logits_of(reference, its_head, tokens()), before)
    assert not torch.allclose(logits_of(actor, head, tokens()), before)
    shared = {b.data_ptr() for b in actor.buffers()} & {b.data_ptr() for b in reference.buffers()}
    assert bool(shared) == bool(lora_rank)
    weights = {p.data_ptr() for p in actor.parameters()}
    assert not weights & {p.data_ptr() for p in reference.parameters()}


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_recomputed_activations_give_the_same_gradients(folder, lora_rank):
    gradients = []
    for recomputes in (False, True):
        _, (actor, critic), head = build(folder, 2, lora_rank=lora_rank)
        for trunk in (actor, critic):
            trunk.checkpoints_activations = recomputes
            assert trunk.can_checkpoint
            if lora_rank:  # else B = 0 and the gradient of A is 0
                for name, parameter in trunk.named_parameters():
                    if name.endswith("up"):
                        parameter.data += 0.1 if trunk is actor else -0.1
        values = critic.read(tokens(), None, None)[0].square().mean()
        # The critic's pass comes between the actor's and its repetition.
        loss = logits_of(actor, head, tokens()).square().mean() + values
        loss.backward()
        parameters = [*actor.parameters(), *critic.parameters(), *head.parameters()]
        gradients.append([parameter.grad for parameter in parameters])
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_models_with_adapters_share_a_base_as_long_as_one_exists(llama):
    def base_of(**options):
        _, (trunk,), head = build(llama, **({"lora_rank": 4} | options))
        return trunk, head, {id(buffer) for buffer in (*trunk.buffers(), *head.buffers())}

    first, _, base = base_of()
    assert base_of()[2] == base
    assert not base_of(base_dtype=BaseDtype.bfloat16)[2] & base
    assert not base_of(lora_targets=["q_proj"])[2] & base
    with FakeTensorMode(allow_fallback_kernels=False):
        assert all(isinstance(tensor, FakeTensor) for tensor in base_of()[0].buffers())
    assert not any(isinstance(tensor, FakeTensor) for tensor in first.buffers())


def test_low_rank_adapters_add_a_product_by_hand():
    layer = LowRank(torch.nn.Linear(2, 1, bias=False), scale=2.0)
    layer.base.weight.data = torch.tensor([[1.0, 10.0]])
    x = torch.tensor([[3.0, 4.0]])
    assert layer(x).item() == 43.0
    layer.down, layer.up = torch.tensor([[1.0], [2.0]]), torch.tensor([[5.0]])
    assert layer(x).item() == 43.0 + 2.0 * (3.0 + 2.0 * 4.0) * 5.0
    assert layer.merged().tolist() == [[1.0 + 2.0 * 5.0, 10.0 + 2.0 * 10.0]]


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_saved_policy_is_read_by_transformers_with_its_tokenizer(folder, lora_rank, tmp_path):
    network, (actor,), head = build(folder, lora_rank=lora_rank)
    train(actor, head)
    network.export(actor, head, tmp_path)
    ours = logits_of(actor, head, tokens()).detach()
    torch.testing.assert_close(theirs(tmp_path, tokens()), ours, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(theirs(folder, tokens()), ours)
    text = "every gentle robot"
    saved, original = (AutoTokenizer.from_pretrained(path) for path in (tmp_path, folder))
    assert saved.encode(text) == original.encode(text)
    configs = [json.loads((path / "config.json").read_text()) for path in (tmp_path, folder)]
    assert configs[0] == configs[1]
    HfConfig(path=str(tmp_path)).check()


def test_a_bfloat16_base_takes_half_the_memory_and_gives_float32_features(llama):
    _, (trunk,), head = build(llama, lora_rank=4, base_dtype=BaseDtype.bfloat16)
    floats = {b.dtype for name, b in trunk.named_buffers() if "inv_freq" not in name}
    assert floats == {torch.bfloat16}
    assert {p.dtype for p in trunk.parameters()} == {torch.float32}
    assert trunk.read(tokens(), None, None)[0].dtype is torch.float32
    found = logits_of(trunk, head, tokens()).float()
    torch.testing.assert_close(found, theirs(llama, tokens()), rtol=0.1, atol=0.2)


@pytest.mark.parametrize(
    "options", [{}, {"lora_rank": 4}, {"lora_rank": 2, "lora_targets": ["q_proj"]}]
)
def test_parameters_are_counted_from_the_config_alone(llama, options, monkeypatch):
    network, trunks, _ = build(llama, 2, **options)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    for trunk in trunks:
        assert network.num_trunk_parameters(SPEC) == sum(p.numel() for p in trunk.parameters())


def test_lora_parameters_by_hand(llama):
    network = HfConfig(path=str(llama), lora_rank=2, lora_targets=["q_proj", "k_proj"])
    # 32 inputs; 4 heads of 8 for queries, 2 for keys; three blocks.
    assert network.num_trunk_parameters(SPEC) == 3 * 2 * ((32 + 32) + (32 + 16))


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_forecast_builds_and_runs_without_reading_weights(llama, lora_rank, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with FakeTensorMode(allow_fallback_kernels=False):
        _, (actor, critic), head = build(llama, 2, lora_rank=lora_rank)
        assert all(isinstance(tensor, FakeTensor) for tensor in actor.parameters())
        given = torch.zeros(1, 3, 7, 1, dtype=torch.int64)
        loss = logits_of(actor, head, given).mean() + critic.read(given, None, None)[0].mean()
        loss.backward()
        with torch.inference_mode():
            features, _ = actor.read(given[:, :, :1], None, actor.empty_memory(3, 7))
        assert features.shape == (1, 3, 1, 32)
