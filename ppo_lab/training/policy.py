"""A trained policy on disk, and as an object that acts outside the lab.

``checkpoint/`` in a run's folder holds ``model.safetensors`` (weights, observation statistics) and
``policy.json`` (what to build them into). Nothing in either is executed on loading.

Shapes: O = observation size, A = action size, n = observations in a batch.
"""

from __future__ import annotations

import dataclasses
import json
import math
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from ppo_lab.config.run import Config
from ppo_lab.envs.base import ContinuousActions, DiscreteActions, EnvSpec
from ppo_lab.envs.running_stats import normalize
from ppo_lab.networks import NETWORKS, ActorCritic, Initializer, NetworkConfig
from ppo_lab.utils import rng
from ppo_lab.utils.json_files import atomic_write, to_jsonable, write_json

__all__ = ["Policy", "load_policy", "save_policy"]

_FORMAT = 1
_OBSERVATION_MEAN, _OBSERVATION_VAR = "observation_mean", "observation_var"


def save_policy(
    folder: Path, config: Config, model: ActorCritic, env_state: dict[str, Tensor], *, lane: int = 0
) -> Path:
    """Write one lane's policy below ``folder`` and return the checkpoint's own folder."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    # A shared trunk appears under both of its names; safetensors wants each tensor once.
    tensors = {
        f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()
    } | {f"env.{name}": value for name, value in env_state.items()}
    lane_tensors = {name: t[lane : lane + 1].contiguous().cpu() for name, t in tensors.items()}
    atomic_write(checkpoint / "model.safetensors", save(lane_tensors))
    spec = config.check_env()
    network_kind = next(kind for kind, c in NETWORKS.items() if type(config.network) is c)
    write_json(
        checkpoint / "policy.json",
        {
            "format": _FORMAT,
            "env_id": config.env.id,
            "observation_shape": spec.observation_shape or (spec.observation_size,),
            "actions": {"kind": type(spec.actions).__name__}
            | to_jsonable(dataclasses.asdict(spec.actions)),
            "network": {"kind": network_kind} | to_jsonable(dataclasses.asdict(config.network)),
            "shares_trunk": model.shares_trunk,
            "dtype": config.dtype.value,
        },
    )
    return checkpoint


class Policy:
    """Acts on observations as the environment gives them: it normalises them itself."""

    def __init__(
        self, model: ActorCritic, spec: EnvSpec, env_id: str, state: dict[str, Tensor]
    ) -> None:
        """Wrap a one-lane ``model``; ``state`` holds observation statistics, if there are any."""
        self.spec, self.env_id = spec, env_id
        self._model, self._state = model, state
        self._num_drawn = 0

    def act(
        self, observation: NDArray[Any], *, deterministic: bool = True, seed: int = 0
    ) -> NDArray[Any]:
        """Return the action for one observation, or actions for a batch with a leading axis n.

        Discrete actions are int64, () or (n,), counted as the environment does; continuous ones
        float32, (A,) or (n, A), clipped to the action space. Stochastic actions follow from
        ``seed`` and the calls made so far.

        Raises:
            ValueError: the observation has another shape than the environment's.
        """
        array = np.asarray(observation)
        shape = self.spec.observation_shape or (self.spec.observation_size,)
        is_batch = array.ndim == len(shape) + 1
        if array.shape[is_batch:] != shape:
            raise ValueError(f"an observation has shape {shape}, not {array.shape}")
        observations = torch.as_tensor(array, dtype=self._dtype)
        rows = observations.reshape(1, -1, self.spec.observation_size)
        with torch.no_grad():
            actions = self._act(rows, deterministic=deterministic, seed=seed)[0]
        chosen = actions.numpy()
        if isinstance(self.spec.actions, DiscreteActions):
            chosen = chosen + self.spec.actions.start
        else:
            low, high = self.spec.actions.low, self.spec.actions.high
            chosen = np.clip(chosen, low, high).astype(np.float32)
        return chosen if is_batch else chosen[0]

    @property
    def _dtype(self) -> torch.dtype:
        return self._model.policy_head.weight.dtype

    def _act(self, rows: Tensor, *, deterministic: bool, seed: int) -> Tensor:
        """Return actions (1, n, …) for raw observations (1, n, O)."""
        if _OBSERVATION_MEAN in self._state:
            rows = normalize(
                rows, var=self._state[_OBSERVATION_VAR], mean=self._state[_OBSERVATION_MEAN]
            )
        parameters = self._model.policy(rows)
        distribution = self._model.distribution
        if deterministic:
            return distribution.mode(parameters)
        keys = rng.lane_keys(torch.tensor([seed]), rng.Stream.EVAL)
        keys = rng.fold_in(keys, self._num_drawn)
        self._num_drawn += 1
        noise = distribution.noise(keys, rows.shape[1], self._dtype)
        return distribution.sample(parameters, noise)


def load_policy(run: str | Path) -> Policy:
    """Return the policy saved in a run's folder.

    Raises:
        FileNotFoundError: ``run`` holds no finished model.
    """
    checkpoint = Path(run) / "checkpoint"
    if not (checkpoint / "policy.json").is_file():
        raise FileNotFoundError(f"{run}: no checkpoint/policy.json there; is it a finished run?")
    described = json.loads((checkpoint / "policy.json").read_text())
    if described["format"] != _FORMAT:
        raise ValueError(
            f"{run}: policy format {described['format']}, this version reads {_FORMAT}"
        )
    shape = tuple(described["observation_shape"])
    spec = EnvSpec(math.prod(shape), _actions(described["actions"]), shape)
    dtype = torch.float64 if described["dtype"] == "float64" else torch.float32
    initializer = Initializer(torch.zeros(1, dtype=torch.int64), torch.device("meta"), dtype)
    model = ActorCritic(
        _network(described["network"]), spec, initializer, shares_trunk=described["shares_trunk"]
    )
    tensors = load_file(checkpoint / "model.safetensors")
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    if model.shares_trunk:
        weights |= {
            name.replace("actor.", "critic.", 1): tensor
            for name, tensor in weights.items()
            if name.startswith("actor.")
        }
    model.load_state_dict(weights, assign=True)
    state = {n.removeprefix("env."): t for n, t in tensors.items() if n.startswith("env.")}
    return Policy(model, spec, described["env_id"], state)


def _actions(described: dict[str, Any]) -> DiscreteActions | ContinuousActions:
    if described["kind"] == DiscreteActions.__name__:
        return DiscreteActions(described["num_actions"], described["start"])
    return ContinuousActions(
        tuple(float(bound) for bound in described["low"]),
        tuple(float(bound) for bound in described["high"]),
    )


def _network(described: dict[str, Any]) -> NetworkConfig:
    kind = NETWORKS[described["kind"]]
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = described[field.name]
        default = field.default
        values[field.name] = type(default)(value) if isinstance(default, Enum) else value
    return kind(**values)
