"""Evaluation of the deterministic policies of a stack over whole episodes, beside their training.

The episodes of a lane are a function of its seed and its iteration. Nothing that training reads is
changed: environments, random keys and the count of bytes over the bus are separate.

Shapes: L = lanes, N = episodes per lane, O = observation size, A = action size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppo_lab.config.run import Config
from ppo_lab.devices.placement import Placement
from ppo_lab.envs.base import Env
from ppo_lab.envs.config import EnvConfig
from ppo_lab.envs.running_stats import normalize
from ppo_lab.networks import ActorCritic
from ppo_lab.networks.sequences import Memory
from ppo_lab.training.acting import OBSERVATION_MEAN, OBSERVATION_VAR, read_step
from ppo_lab.training.policy import policy_tensors

__all__ = ["BestPolicy", "Episodes", "Evaluator", "build_raw", "first_episodes"]

_BEST = "best."  # in the names of a lane's state


class Episodes(NamedTuple):
    """Whole episodes, one per environment."""

    returns: Tensor  # (L, N) undiscounted sums of the environment's own rewards, float64
    lengths: Tensor  # (L, N) steps, int64


class BestPolicy(NamedTuple):
    """The policy with the highest mean return of all evaluations of a run."""

    step: int  # environment steps of training before it
    tensors: dict[str, Tensor]  # on the host; see ``policy_tensors``


def build_raw(env: EnvConfig, **options: Any) -> Env:  # noqa: ANN401 - those of EnvConfig.build
    """Return environments without normalisation, which follows the statistics of training."""
    raw = dataclasses.replace(env, normalize_observations=False, normalize_rewards=False)
    return raw.build(**options)


def first_episodes(
    env: Env,
    observations: Tensor,
    act: Callable[[Tensor], Tensor],
    *,
    max_steps: int,
    lanes: Sequence[int] | None = None,
) -> Episodes:
    """Step all environments until the first episode of each has ended.

    ``act`` returns actions (L, N[, A]) for observations (L, N, O), of which ``observations`` are
    the first. Only the episodes of ``lanes`` count; None: of all. Others may be incomplete.

    Raises:
        TimeoutError: An episode did not end within ``max_steps``.
    """
    shape = env.num_lanes, env.num_envs
    returns = torch.zeros(shape, dtype=torch.float64, device=env.device)
    lengths = torch.zeros(shape, dtype=torch.int64, device=env.device)
    is_running = torch.zeros(shape, dtype=torch.bool, device=env.device)
    is_running[slice(None) if lanes is None else lanes] = True
    for _ in range(max_steps):
        actions, _ = env.given_actions(act(observations))
        step = env.step(actions)
        returns += torch.where(is_running, step.env_rewards.double(), 0.0)
        lengths += is_running
        is_running &= ~(step.terminated | step.truncated)
        observations = step.observations
        if not is_running.any():
            return Episodes(returns, lengths)
    left = f"{int(is_running.sum())} of {is_running.numel()} episodes"
    raise TimeoutError(f"{left} did not end within {max_steps} steps")


class Evaluator:
    """Evaluates the policies of a stack, and keeps the best of each lane."""

    def __init__(self, config: Config, num_lanes: int) -> None:
        """Evaluate ``num_lanes`` lanes like ``config``; environments are built when needed."""
        self._config, self._num_lanes = config, num_lanes
        self._placement = Placement(config.torch_device)
        self._env: Env | None = None
        self.best: list[BestPolicy | None] = [None] * num_lanes

    @torch.inference_mode()
    def evaluate(
        self,
        model: ActorCritic,
        env_state: Mapping[str, Tensor],
        keys: Tensor,
        lanes: Sequence[int],
    ) -> dict[int, dict[str, float]]:
        """Return the metrics of the policies in ``lanes``, over episodes that follow from ``keys``.

        The keys are (L,); ``env_state`` holds the statistics of normalised observations, if any.
        """
        env = self._env = self._env or self._build()
        memory: Memory | None = None

        def act(observations: Tensor) -> Tensor:
            nonlocal memory
            if OBSERVATION_MEAN in env_state:
                mean, var = (env_state[n].unsqueeze(1) for n in (OBSERVATION_MEAN, OBSERVATION_VAR))
                observations = normalize(observations, var=var, mean=mean)
            parameters, memory = read_step(model, observations, memory)
            return model.distribution.mode(parameters)

        first, max_steps = env.begin_episodes(keys, 1), self._config.env.episode_limit()
        returns, lengths = first_episodes(env, first, act, max_steps=max_steps, lanes=lanes)
        if env.state_mode == "boundary":  # may keep more than a reset clears
            self.close()
        numbers = {
            "eval/return": returns.mean(1),
            "eval/return_std": returns.std(1, correction=0),
            "eval/length": lengths.double().mean(1),
        }
        by_name = {name: values.tolist() for name, values in numbers.items()}
        return {lane: {name: by_name[name][lane] for name in by_name} for lane in lanes}

    def _build(self) -> Env:
        config, num_lanes = self._config, self._num_lanes
        return build_raw(
            config.env,
            seeds=torch.zeros(num_lanes, dtype=torch.int64),  # each evaluation has keys of its own
            num_envs=config.eval_episodes,
            gamma=torch.ones(num_lanes),
            placement=self._placement,
            dtype=config.weights_dtype,
        )

    def keep(
        self, lane: int, step: int, model: ActorCritic, env_state: Mapping[str, Tensor]
    ) -> None:
        """Keep the present policy of ``lane`` as its best."""
        tensors = policy_tensors(model, env_state, lane)
        self.best[lane] = BestPolicy(step, {name: t.clone() for name, t in tensors.items()})

    def lane_tensors(self, lane: int) -> dict[str, Tensor]:
        """Return the part of a lane's state that is the best policy's; see ``load``."""
        if (best := self.best[lane]) is None:
            return {}
        tensors = {f"{_BEST}{name}": tensor for name, tensor in best.tensors.items()}
        return {f"{_BEST}step": torch.tensor(best.step), **tensors}

    def load(self, lane: int, state: Mapping[str, Tensor]) -> None:
        """Take the best policy of ``lane`` from a state; none if it has none."""
        own = {n.removeprefix(_BEST): t for n, t in state.items() if n.startswith(_BEST)}
        step = own.pop("step", None)
        self.best[lane] = None if step is None else BestPolicy(int(step), own)

    def close(self) -> None:
        """Close the environments, if there are any."""
        if self._env is not None:
            self._env.close()
        self._env = None
