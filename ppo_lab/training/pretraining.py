"""The network that a policy for texts starts from: pretrained on the task's corpus.

It is a function of the network's options, the corpus and ``env.pretrain_*``. The first run of a
kind makes it, in seconds for small networks; later ones read it from the user's cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ppo_lab.compiler.compiled import CompilerError
from ppo_lab.compiler.program_store import default_folder, private_folder, read_own
from ppo_lab.config.run import Config
from ppo_lab.envs.base import EnvSpec
from ppo_lab.envs.text.config import TextConfig
from ppo_lab.envs.text.tokenizers import Tokenizer
from ppo_lab.networks import ActorCritic, Initializer
from ppo_lab.networks.sequences import Sequences
from ppo_lab.ppo.adam import LaneAdam
from ppo_lab.utils.json_files import atomic_write, to_jsonable

__all__ = ["Pretrained", "is_text_live", "new_actor", "pretrained", "start_from"]

_LOG = logging.getLogger(__name__)

_VERSION = 1  # of what happens here: a file of another version is not found
_DIGEST_BYTES = 32  # of SHA-256, before the tensors


class Pretrained(NamedTuple):
    """An actor's parameters (1, …) by name, on the host."""

    weights: dict[str, Tensor]
    digest: str
    """SHA-256 of the weights."""


def new_actor(config: Config, spec: EnvSpec, device: torch.device) -> ActorCritic:
    """Return one lane's actor without a critic, with weights from ``env.pretrain_seed``."""
    env = _text(config)
    seeds = torch.tensor([env.pretrain_seed])
    initializer = Initializer(seeds, device, config.weights_dtype)
    return ActorCritic(
        config.network,
        spec,
        initializer,
        shares_trunk=False,
        has_critic=False,
        compute_dtype=config.compute_dtype,
        checkpoints_activations=config.memory.checkpoint_activations,
    )


@torch.no_grad()
def start_from(model: ActorCritic, first: Pretrained | None) -> None:
    """Copy an actor into every lane, and its trunk into the critic's too; None changes nothing."""
    weights = {} if first is None else first.weights
    for name, parameter in model.named_parameters():
        source = name.replace("critic.", "actor.", 1) if name.startswith("critic.") else name
        if source in weights:  # not the value head
            parameter.copy_(weights[source])


def pretrained(config: Config, spec: EnvSpec, *, is_dry: bool = False) -> Pretrained | None:
    """Return the actor that runs of ``config``, of all seeds, start from.

    None where networks start at random, or their numbers do not matter (``is_dry``).
    A file that is damaged, or that another user can have written, is made again with a warning; so
    it is without a file where the cache cannot be written.
    """
    if is_dry or not isinstance(config.env, TextConfig):
        return None
    if config.network.is_pretrained and config.env.pretrain_steps == 0:
        return None  # it begins as it was loaded
    # In a thread of its own: modes that count a trainer's memory do not see what is made only once.
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(_pretrained, config, spec).result()


def _pretrained(config: Config, spec: EnvSpec) -> Pretrained:
    if _text(config).pretrain_steps == 0:
        return _parsed(_serialized(new_actor(config, spec, config.torch_device)))
    path = default_folder() / f"reference-{_key(config)}.safetensors"
    try:
        return _parsed(read_own(path))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, SafetensorError) as error:
        _LOG.warning("the reference is pretrained again: %s cannot be used (%s)", path, error)
    content = _serialized(_train(config, spec))
    _keep(path, content)
    return _parsed(content)


def _keep(path: Path, content: bytes) -> None:
    try:
        private_folder(path.parent)
        atomic_write(path, content)
        path.chmod(0o600)
    except (OSError, CompilerError) as error:
        _LOG.warning("the reference is not kept for later runs: %s", error)


def _serialized(model: ActorCritic) -> bytes:
    """Return a file's content: the SHA-256 of the tensors, then these."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    content = save(tensors)
    return hashlib.sha256(content).digest() + content


def _parsed(content: bytes) -> Pretrained:
    digest, tensors = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(tensors).digest() != digest:
        raise ValueError("it is damaged")
    return Pretrained(load(tensors), digest.hex())


def _key(config: Config) -> str:
    """Return a digest of everything that the weights depend on."""
    env, network = _text(config), config.network
    task = env.make_task()
    corpus = task.corpus_tokens(env.pretrain_seed, env.pretrain_batch, task.longest)
    options: dict[str, Any] = {
        "version": _VERSION,
        "network": {"kind": type(network).__qualname__, **to_jsonable(dataclasses.asdict(network))},
        "vocabulary": task.tokenizer.size,
        "corpus": hashlib.sha256(corpus.numpy().tobytes()).hexdigest(),
        "pretrain": _pretrain_options(env),
        "dtype": config.dtype.value,
        "device": config.torch_device.type,
    }
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


def _pretrain_options(env: TextConfig) -> Mapping[str, Any]:
    return {
        field.name: getattr(env, field.name)
        for field in dataclasses.fields(env)
        if field.name.startswith("pretrain_")
    }


def _text(config: Config) -> TextConfig:
    assert isinstance(config.env, TextConfig)
    return config.env


def _train(config: Config, spec: EnvSpec) -> ActorCritic:
    """Return an actor after ``pretrain_steps`` steps of Adam on the corpus's cross-entropy.

    The learning rate falls linearly to 0.
    """
    env, device, model = _text(config), config.torch_device, None
    model = new_actor(config, spec, device)
    task, batch = env.make_task(), env.pretrain_batch
    tokens = task.corpus_tokens(env.pretrain_seed, env.pretrain_steps * batch, task.longest)
    tokens = tokens.to(device).unflatten(0, (env.pretrain_steps, batch))  # (steps, B, T + 1)
    _LOG.info("pretraining the reference: %d steps of %d texts", env.pretrain_steps, batch)
    optimizer = LaneAdam(model.parameters(), eps=1e-8)
    limit = torch.ones(1, dtype=config.weights_dtype, device=device)
    loss = limit
    for step, texts in enumerate(tokens.unbind(0)):
        loss = _cross_entropy(model, texts, task.tokenizer)
        loss.backward()
        share = 1.0 - step / env.pretrain_steps
        optimizer.step(lr=limit * (env.pretrain_lr * share), max_grad_norm=limit)
        optimizer.zero_grad()
    _LOG.info("the reference's cross-entropy is %.3f nats a token", loss.item())
    return model


def _cross_entropy(model: ActorCritic, texts: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Return the mean nats per token of ``texts`` (B, T + 1) after their first, to their ends."""
    read, targets = texts[:, :-1], texts[:, 1:]
    inputs = Sequences(read.unsqueeze(-1).unsqueeze(0), None)  # (1, B, T, 1)
    log_probs = model.evaluate(inputs, targets.flatten().unsqueeze(0)).log_probs
    assert log_probs is not None
    live = is_text_live(targets, tokenizer.end, tokenizer.pad).flatten().unsqueeze(0)
    return -(log_probs * live).sum() / live.sum()


def is_text_live(targets: Tensor, end: int, pad: int) -> Tensor:
    """Return which tokens (B, T) belong to a text: those up to its end, which may be the pad too.

    Example:
        >>> is_text_live(torch.tensor([[5, 2, 2, 2]]), end=2, pad=2)
        tensor([[ True,  True, False, False]])
    """
    is_end = targets == end
    is_after = is_end.cumsum(-1) - is_end.long() > 0
    return ~is_after if pad == end else ~is_after & (targets != pad)
