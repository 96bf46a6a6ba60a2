"""Options of the config group ``env``: which environment, and how it is checked and built."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

import torch
from omegaconf import MISSING
from torch import Tensor

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.envs import NATIVE_ENVS
from ppo_lab.envs.base import Env, EnvSpec
from ppo_lab.envs.dry_env import DryEnv
from ppo_lab.envs.gymnasium_env import GymnasiumEnv
from ppo_lab.envs.gymnasium_spec import (
    check_gymnasium,
    imports_module,
    known_limit,
    known_spec,
    remember_spec,
)
from ppo_lab.envs.normalized import NormalizedEnv
from ppo_lab.utils.errors import ConfigError, check_number

__all__ = ["Backend", "EnvConfig"]


class Backend(Enum):
    """Implementation of the environments."""

    auto = "auto"  # torch if there is a native version and no kwargs, else gymnasium
    torch = "torch"  # native: tensor operations on the training device, no copies
    gymnasium = "gymnasium"  # any id, stepped one after the other on the host


@dataclass(kw_only=True)
class EnvConfig:
    """Options of an environment."""

    whole_episodes: ClassVar[bool] = False
    """Whether each rollout is one episode per environment, begun by ``Env.begin_episodes``."""

    id: str = MISSING
    """Gymnasium id such as CartPole-v1, or ``module:Name-v0``: the module is imported first to
    register the id."""
    backend: Backend = Backend.auto
    """Implementation; the native ones are tested against Gymnasium's, step by step."""
    normalize_observations: bool = False
    """Subtract the running mean and divide by the running standard deviation, clipped to +-10.
    Needed where components differ in scale (MuJoCo); removes the information in their scale."""
    normalize_rewards: bool = False
    """Divide by the running standard deviation of the discounted return, clipped to +-10. Needed
    where returns are far from order one; reported returns stay in the environment's units."""
    max_episode_steps: int | None = None
    """Steps after which an episode is truncated; None: the environment's own limit. Smaller gives
    more and shorter episodes."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of gymnasium.make besides the id, such as ``{continuous: true}``."""
    timeout_s: float | None = 300.0
    """Seconds that one step or reset of a Gymnasium environment may take before the run fails;
    None: any. Larger for simulators that are slow to start."""
    random_return: float | None = None
    """Mean episode return of random actions: the level of an untrained or collapsed policy."""
    target_return: float | None = None
    """Episode return of a good policy; with ``random_return`` the range that a collapse is measured
    against."""
    returns_for: str | None = None
    """The id to which the two returns apply; ignored with another ``env.id``. None: any id."""

    def __getstate__(self) -> dict[str, Any]:
        """Add the environment's spec: a worker that receives the config need not build one."""
        return {**self.__dict__, "_spec": known_spec(self.id, self.kwargs)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        spec = state.pop("_spec")
        self.__dict__.update(state)
        if spec is not None:
            remember_spec(self.id, self.kwargs, spec)

    def score_range(self) -> tuple[float, float] | None:
        """Return random_return and target_return; None unless both are known for this ``id``."""
        is_another = self.returns_for not in (None, self.id)
        if is_another or self.random_return is None or self.target_return is None:
            return None
        return self.random_return, self.target_return

    def resolved_backend(self) -> Backend:
        """Return the backend, with ``auto`` resolved."""
        if self.backend is not Backend.auto:
            return self.backend
        return Backend.torch if self.id in NATIVE_ENVS and not self.kwargs else Backend.gymnasium

    def imported_module(self) -> str | None:
        """Return the user's module whose code runs when this is checked or built; or None."""
        return imports_module(self.id)

    def episode_limit(self) -> int:
        """Return the most steps of an episode; raise ``ConfigError`` if there is no limit."""
        limit = self.max_episode_steps
        if limit is None and self.resolved_backend() is Backend.torch and self.id in NATIVE_ENVS:
            limit = NATIVE_ENVS[self.id].time_limit
        elif limit is None:
            limit = known_limit(self.id)
        if limit is None:
            allowed = f"{self.id} has no time limit; memory=critic_free and eval_every need one"
            raise ConfigError("env.max_episode_steps", None, allowed)
        return limit

    def check_rollout(self, num_steps: int) -> None:
        """Raise ``ConfigError`` if no episode can be played in rollouts of ``num_steps``."""

    def check(self) -> EnvSpec:
        """Return the sizes that a network needs; raise ``ConfigError`` for unusable options.

        Example:
            >>> EnvConfig(id="CartPole-v1").check().actions
            DiscreteActions(num_actions=2, start=0)
        """
        if self.id in ("", MISSING):
            raise ConfigError("env.id", self.id, "name one, for example env.id=CartPole-v1")
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            allowed = "at least 1 step, or null for the environment's own limit"
            raise ConfigError("env.max_episode_steps", self.max_episode_steps, allowed)
        check_number("env.timeout_s", self.timeout_s, above=0.0, off=True)
        if self.resolved_backend() is Backend.gymnasium:
            if self.id in NATIVE_ENVS and NATIVE_ENVS[self.id].only_native:
                allowed = f"{self.id} is not in Gymnasium: choose torch, without env.kwargs"
                raise ConfigError("env.backend", Backend.gymnasium.value, allowed)
            return check_gymnasium(
                self.id, self.kwargs, native_ids=NATIVE_ENVS, timeout_s=self.timeout_s
            )
        if self.id not in NATIVE_ENVS:
            allowed = f"native are {', '.join(sorted(NATIVE_ENVS))}; {self.id} needs gymnasium"
            raise ConfigError("env.backend", self.backend.value, allowed)
        if self.kwargs:
            allowed = "the torch backend takes none; set env.backend=gymnasium"
            raise ConfigError("env.kwargs", self.kwargs, allowed)
        return NATIVE_ENVS[self.id].spec

    def build(
        self,
        *,
        seeds: Tensor,
        num_envs: int,
        gamma: Tensor,
        placement: Placement,
        dtype: torch.dtype = torch.float32,
        is_dry: bool = False,
        num_steps: int | None = None,  # noqa: ARG002
    ) -> Env:
        """Return L * N environments on ``placement.device``; call ``reset`` next.

        ``seeds`` (L,) are on the host. ``gamma`` (L,), on the device and never copied, normalises
        rewards. ``is_dry``: build Gymnasium's tensors and transfers without its environments.
        ``num_steps`` of a rollout; only those need it whose rollouts are whole episodes.
        """
        env: Env
        limit = self.max_episode_steps
        if self.resolved_backend() is Backend.torch:
            seeds = placement.move(seeds, Place.device)
            env = NATIVE_ENVS[self.id](
                seeds=seeds, num_envs=num_envs, dtype=dtype, max_episode_steps=limit
            )
        elif is_dry:
            env = DryEnv(self.check(), len(seeds), num_envs, placement, dtype)
        else:
            env = GymnasiumEnv(
                self.id,
                seeds,
                num_envs,
                placement,
                dtype,
                max_episode_steps=limit,
                kwargs=self.kwargs,
                timeout_s=self.timeout_s,
            )
        observations, rewards = self.normalize_observations, self.normalize_rewards
        if not (observations or rewards):
            return env
        return NormalizedEnv(env, observations=observations, rewards=rewards, gamma=gamma)
