"""Save a trained policy, and load it to act outside of training.

``checkpoint/`` in a run's folder holds ``model.safetensors`` (weights and observation statistics)
and ``policy.json`` (the architecture). Loading executes no code from either.

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
    """Save one lane's policy in ``folder/checkpoint`` and return that path."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    # ``named_parameters`` lists a shared trunk once, as safetensors requires.
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    tensors |= {f"env.{name}": value for name, value in env_state.items()}
    lane_tensors = {name: t[lane : lane + 1].contiguous().cpu() for name, t in tensors.items()}
    atomic_write(checkpoint / "model.safetensors", save(lane_tensors))
    spec = config.check_env()
    network_kind = next(kind for kind, c in NETWORKS.items() if type(config.network) is c)
    actions, network = (to_jsonable(dataclasses.asdict(d)) for d in (spec.actions, config.network))
    described = {
        "format": _FORMAT,
        "env_id": config.env.id,
        "observation_shape": spec.observation_shape or (spec.observation_size,),
        "actions": {"kind": type(spec.actions).__name__} | actions,
        "network": {"kind": network_kind} | network,
        "shares_trunk": model.shares_trunk,
        "dtype": config.dtype.value,
    }
    write_json(checkpoint / "policy.json", described)
    return checkpoint


class Policy:
    """A trained policy for raw observations, which it normalises as in training.

    Attributes:
        spec: Shape of the observations, and the action space.
        env_id: Id of the environment that the policy was trained on.
    """

    def __init__(
        self, model: ActorCritic, spec: EnvSpec, env_id: str, state: dict[str, Tensor]
    ) -> None:
        """Wrap a model of one lane.

        ``state`` holds the observations' mean and variance if they were normalised, else nothing.
        """
        self.spec, self.env_id = spec, env_id
        self._model, self._state = model, state
        self._num_drawn = 0

    def act(
        self, observation: NDArray[Any], *, deterministic: bool = True, seed: int = 0
    ) -> NDArray[Any]:
        """Return the action for one observation, or the actions for a batch.

        Args:
            observation: The environment's observation, with a leading axis n for a batch.
            deterministic: Take the most probable action (continuous: the mean) instead of a sample.
            seed: Of the samples; these also depend on the number of earlier calls.

        Returns:
            Discrete actions as int64, () or (n,), numbered as in the environment; continuous
            actions as float32, (A,) or (n, A), clipped to the action space.

        Raises:
            ValueError: The observation does not have the environment's shape.
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
            var, mean = self._state[_OBSERVATION_VAR], self._state[_OBSERVATION_MEAN]
            rows = normalize(rows, var=var, mean=mean)
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

    Args:
        run: Folder of a finished run, such as ``outputs/runs/<run>``.

    Returns:
        The policy, on the CPU.

    Raises:
        FileNotFoundError: There is no checkpoint in ``run``.
        ValueError: The checkpoint has the format of another version.
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
        trunk = {name: t for name, t in weights.items() if name.startswith("actor.")}
        weights |= {name.replace("actor.", "critic.", 1): t for name, t in trunk.items()}
    model.load_state_dict(weights, assign=True)
    state = {n.removeprefix("env."): t for n, t in tensors.items() if n.startswith("env.")}
    return Policy(model, spec, described["env_id"], state)


def _actions(described: dict[str, Any]) -> DiscreteActions | ContinuousActions:
    if described["kind"] == DiscreteActions.__name__:
        return DiscreteActions(described["num_actions"], described["start"])
    low, high = (tuple(map(float, described[key])) for key in ("low", "high"))
    return ContinuousActions(low, high)


def _network(described: dict[str, Any]) -> NetworkConfig:
    kind = NETWORKS[described["kind"]]
    values = {field.name: described[field.name] for field in dataclasses.fields(kind)}
    for field in dataclasses.fields(kind):
        if isinstance(field.default, Enum):
            values[field.name] = type(field.default)(values[field.name])
    return kind(**values)
