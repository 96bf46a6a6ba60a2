"""Tiny pretrained language models with a real tokenizer, made on the spot."""

import torch

from ppo_lab.envs.base import DiscreteActions, EnvSpec
from ppo_lab.networks import HfConfig, Initializer

SENTENCES = [
    "the gentle beaver greets a farmer .",
    "a rude sailor paints the tall robot slowly .",
    "every teacher helps this lovely pony today .",
]

NUM_TOKENS = 80  # of the environment; the models know some more
SPEC = EnvSpec(1, DiscreteActions(NUM_TOKENS), num_tokens=NUM_TOKENS, max_episode_steps=16)


def save_tokenizer(folder):
    """Train byte pairs on a few sentences; return the tokenizer of transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<bos>", "<eos>"]
    inner.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_checkpoint(folder, kind="llama", *, seed=0, **options):
    """Save a model of about 50 thousand parameters with random weights, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = save_tokenizer(folder)
    tokens = {"vocab_size": len(tokenizer) + 6, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
    config = AutoConfig.for_model(kind, **(tokens | sizes | options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():  # as initialised, all tokens are alike
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return folder


def count_gentle(texts):
    """A reward: how many words of each text are ``gentle``."""
    return [float(text.split().count("gentle")) for text in texts]


def initializer(dtype=torch.float32, device="cpu", seed=1):
    return Initializer(torch.tensor([seed]), torch.device(device), dtype)


def build(folder, number=1, *, dtype=torch.float32, device="cpu", **options):
    network = HfConfig(path=str(folder), **options)
    network.check()
    network.check_env(SPEC)
    given = initializer(dtype, device)
    trunks = network.build_trunks(SPEC, given, number)
    return network, trunks, network.build_policy_head(trunks[0], given, NUM_TOKENS)
