"""Save a trained policy, and load it to act outside of training.

``checkpoint/`` in a run's folder holds ``model.safetensors`` (weights and observation statistics)
and ``policy.json`` (the architecture, and the SHA-256 of both files). Loading executes no code from
either, and refuses what is damaged.

Shapes: O = observation size, A = action size, n = observations in a batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ppo_lab.config.run import Config
from ppo_lab.envs.base import ContinuousActions, DiscreteActions, EnvSpec
from ppo_lab.envs.text.config import TextConfig, TextTaskName
from ppo_lab.networks import NETWORKS, ActorCritic, Initializer, NetworkConfig
from ppo_lab.training.acting import OBSERVATION_MEAN, OBSERVATION_VAR, Policy, Texts
from ppo_lab.utils.json_files import atomic_write, parse_object, read_bounded, to_jsonable

__all__ = ["BEST_FOLDER", "load_policy", "policy_tensors", "save_policy", "write_policy"]

BEST_FOLDER = "best"
"""Folder in a run's that holds its best policy, where policies were evaluated."""

_LOG = logging.getLogger(__name__)

_FORMAT = 1
_DESCRIPTION, _WEIGHTS = "policy.json", "model.safetensors"
_MAX_DESCRIPTION_BYTES = 1 << 14
_MAX_OTHER_BYTES = 1 << 22  # of model.safetensors: names and shapes, statistics
_BLANK = "0" * 64  # in place of the description's own hash while that is computed
_KEYS = frozenset(
    ("format", "env_id", "observation_shape", "actions", "network", "shares_trunk", "dtype")
)
"""Of every policy. ``has_critic``, ``num_tokens`` and ``texts`` came later."""
_TEXT_KEYS = ("max_summand", "prompts", "tokenizer")
_MOST_TEXT_STEPS = 10**6


def save_policy(
    folder: Path,
    config: Config,
    model: ActorCritic,
    env_state: dict[str, Tensor],
    *,
    spec: EnvSpec,
    lane: int = 0,
) -> Path:
    """Save one lane's policy for environments of ``spec``; return ``folder/checkpoint``."""
    tensors = policy_tensors(model, env_state, lane)
    checkpoint = write_policy(folder, config, model, tensors, spec=spec)
    config.network.export(model.actor, model.policy_head, checkpoint / "pretrained")
    return checkpoint


def policy_tensors(
    model: ActorCritic, env_state: Mapping[str, Tensor], lane: int
) -> dict[str, Tensor]:
    """Return what is saved of one lane, on the host: weights and statistics, (1, …) each.

    ``env_state`` holds the statistics of all lanes.
    """
    # ``named_parameters`` lists a shared trunk once, as safetensors requires.
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    tensors |= {f"env.{name}": value for name, value in env_state.items()}
    return {name: t[lane : lane + 1].contiguous().cpu() for name, t in tensors.items()}


def write_policy(
    folder: Path,
    config: Config,
    model: ActorCritic,
    tensors: dict[str, Tensor],
    *,
    spec: EnvSpec,
) -> Path:
    """Write a policy with the ``tensors`` of a model like ``model``; see ``save_policy``."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    weights = save(tensors)
    network_kind = next(kind for kind, c in NETWORKS.items() if type(config.network) is c)
    actions, network = (to_jsonable(dataclasses.asdict(d)) for d in (spec.actions, config.network))
    described = {
        "format": _FORMAT,
        "env_id": config.env.id,
        "observation_shape": spec.shape,
        "actions": {"kind": type(spec.actions).__name__} | actions,
        "network": {"kind": network_kind} | network,
        "shares_trunk": model.shares_trunk,
        "has_critic": model.critic is not None,
        "num_tokens": spec.num_tokens,
        "texts": _described_texts(config),
        "dtype": config.dtype.value,
        "sha256": {_WEIGHTS: _sha256(weights), _DESCRIPTION: _BLANK},
    }
    text = json.dumps(described, indent=2, allow_nan=False) + "\n"
    text = text.replace(_BLANK, _sha256(text.encode()))
    # A policy whose files do not belong together is refused, so their order does not matter.
    atomic_write(checkpoint / _WEIGHTS, weights)
    atomic_write(checkpoint / _DESCRIPTION, text.encode())
    return checkpoint


def load_policy(run: str | Path) -> Policy:
    """Return the policy saved in a run's folder.

    Args:
        run: Folder of a finished run, such as ``outputs/runs/<run>``, or ``best/`` in it.

    Returns:
        The policy, on the CPU.

    Raises:
        OSError: There is no checkpoint in ``run``, or it cannot be read.
        ValueError: The checkpoint is damaged, or has the format of another version.
    """
    checkpoint = Path(run) / "checkpoint"
    path = checkpoint / _DESCRIPTION
    if not path.exists():
        raise FileNotFoundError(f"{run}: no checkpoint/policy.json there; is it a finished run?")
    content = read_bounded(path, _MAX_DESCRIPTION_BYTES)
    described = parse_object(content, path)
    if described.get("format") != _FORMAT:
        found = described.get("format")
        raise ValueError(f"{path}: policy format {found}, this version reads {_FORMAT}")
    weights_hash = _check_description(content, described, path)
    try:
        model, spec, texts = _build(described)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        reason = " ".join(str(e).split())[:200]
        raise ValueError(f"{path}: describes no policy ({type(e).__name__}: {reason})") from e
    tensors = _read_weights(checkpoint / _WEIGHTS, weights_hash, model)
    state = {n.removeprefix("env."): t for n, t in tensors.items() if n.startswith("env.")}
    shapes = [state[n].shape for n in (OBSERVATION_MEAN, OBSERVATION_VAR) if n in state]
    if len(shapes) == 1 or any(shape != (1, spec.observation_size) for shape in shapes):
        raise ValueError(f"{checkpoint / _WEIGHTS}: its statistics do not fit the observations")
    return Policy(model, spec, str(described["env_id"]), state, texts)


def _check_description(content: bytes, described: dict[str, Any], path: Path) -> str | None:
    """Check the description's own hash; return that of the weights, None for an old policy."""
    if described.keys() == _KEYS:
        _LOG.warning("%s: an old policy without hashes; damage cannot be noticed", path)
        return None
    hashes = described.get("sha256")
    found = hashes if isinstance(hashes, dict) else {}
    own, of_weights = found.get(_DESCRIPTION), found.get(_WEIGHTS)
    if not (isinstance(own, str) and isinstance(of_weights, str) and len(own) == len(_BLANK)):
        raise ValueError(f"{path}: damaged: it has no hash of itself and of {_WEIGHTS}")
    if _sha256(content.replace(own.encode(), _BLANK.encode())) != own:
        raise ValueError(f"{path}: damaged: its content does not have its hash")
    return of_weights


def _build(described: dict[str, Any]) -> tuple[ActorCritic, EnvSpec, Texts | None]:
    """Return the described model without weights, its environment's spec, and its texts."""
    if not described.keys() >= _KEYS:
        raise LookupError(f"without {', '.join(sorted(_KEYS - described.keys()))}")
    shape, num_tokens = tuple(described["observation_shape"]), described.get("num_tokens")
    spec = EnvSpec(math.prod(shape), _actions(described["actions"]), shape, num_tokens)
    dtype = torch.float64 if described["dtype"] == "float64" else torch.float32
    network, shares_trunk = _network(described["network"]), bool(described["shares_trunk"])
    network.check()
    network.check_env(spec)
    model = ActorCritic(
        network,
        spec,
        _NoWeights(dtype),
        shares_trunk=shares_trunk,
        has_critic=bool(described.get("has_critic", True)),
    )
    texts = _texts(described.get("texts"))
    if model.reads_sequences and not model.memory_outlives_rollout and texts is None:
        raise LookupError("without texts, which its network reads")
    return model, spec, texts


def _described_texts(config: Config) -> dict[str, Any] | None:
    env = config.env
    if not isinstance(env, TextConfig):
        return None
    values = {key: getattr(env, key) for key in _TEXT_KEYS}
    return {"task": env.task.value, "num_steps": config.rollout_steps} | values


def _texts(described: dict[str, Any] | None) -> Texts | None:
    if described is None:
        return None
    config = TextConfig(
        task=TextTaskName(described["task"]), **{key: described[key] for key in _TEXT_KEYS}
    )
    config.check_values()
    if not 0 < (num_steps := int(described["num_steps"])) <= _MOST_TEXT_STEPS:
        raise ValueError(f"texts of {num_steps} tokens")
    return Texts(config, num_steps)


class _NoWeights(Initializer):
    """Builds weights that have a shape and no memory; the saved ones replace them."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.num_lanes, self.device, self.dtype = 1, torch.device("cpu"), dtype

    def orthogonal(self, num_inputs: int, num_outputs: int, gain: float = 1.0) -> Tensor:  # noqa: ARG002
        return torch.empty(1, num_inputs, num_outputs, dtype=self.dtype, device="meta")

    uniform = orthogonal

    def normal(self, num_inputs: int, num_outputs: int, std: float) -> Tensor:  # noqa: ARG002
        return self.orthogonal(num_inputs, num_outputs)


def _read_weights(path: Path, expected_hash: str | None, model: ActorCritic) -> dict[str, Tensor]:
    """Load the weights into ``model``; return all tensors of the file by their names."""
    expected = {name: (p.shape, p.dtype) for name, p in model.named_parameters()}
    num_bytes = sum(p.numel() * p.itemsize for p in model.parameters())
    content = read_bounded(path, num_bytes + _MAX_OTHER_BYTES)
    if expected_hash is not None and _sha256(content) != expected_hash:
        raise ValueError(f"{path}: damaged: its content does not have the hash in {_DESCRIPTION}")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged: {error}") from None
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    if {name: (t.shape, t.dtype) for name, t in weights.items()} != expected:
        raise ValueError(f"{path}: its tensors are not those of the network in {_DESCRIPTION}")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError(f"{path}: holds weights or statistics that are not finite")
    if model.shares_trunk:
        trunk = {name: t for name, t in weights.items() if name.startswith("actor.")}
        weights |= {name.replace("actor.", "critic.", 1): t for name, t in trunk.items()}
    model.load_state_dict(weights, assign=True)
    return tensors


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _actions(described: dict[str, Any]) -> DiscreteActions | ContinuousActions:
    if described["kind"] == DiscreteActions.__name__:
        return DiscreteActions(described["num_actions"], described["start"])
    low, high = (tuple(map(float, described[key])) for key in ("low", "high"))
    return ContinuousActions(low, high, np.dtype(described.get("dtype", "float32")).name)


def _network(described: dict[str, Any]) -> NetworkConfig:
    kind = NETWORKS[described["kind"]]
    values = {field.name: described[field.name] for field in dataclasses.fields(kind)}
    for field in dataclasses.fields(kind):
        if isinstance(field.default, Enum):
            values[field.name] = type(field.default)(values[field.name])
    return kind(**values)
