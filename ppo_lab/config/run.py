"""The checked configuration of one run.

YAML holds choices and named sets of values; every parameter's type, default, unit and meaning
stands here once. ``none`` switches a number off. ``Config`` checks itself when it is made, so a
value that reaches the trainer is a value that works.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import MISSING

from ppo_lab.config.choices import (
    Compile,
    Dtype,
    ForecastFormat,
    MatmulPrecision,
    Profile,
    Schedule,
)
from ppo_lab.devices.placement import Place
from ppo_lab.envs.base import EnvSpec
from ppo_lab.envs.config import EnvConfig
from ppo_lab.memory import MemoryStrategy
from ppo_lab.networks import NetworkConfig
from ppo_lab.ppo.update import AdvantageNormalization
from ppo_lab.tracking import TrackingConfig
from ppo_lab.utils.errors import REDACTED, ConfigError, check_number
from ppo_lab.utils.json_files import to_jsonable

__all__ = ["Compile", "Config", "Dtype", "ForecastFormat", "Profile", "Schedule"]


@dataclass(kw_only=True)
class Config:
    """One run: an environment, a network, a memory strategy, and PPO's numbers."""

    env: EnvConfig = MISSING
    network: NetworkConfig = MISSING
    memory: MemoryStrategy = MISSING
    tracking: TrackingConfig = MISSING

    name: str = "run"
    """Ends the run folder's name; letters, digits and ``._=-``."""
    seed: int = 1
    """Decides every random number of the run. Compare settings over five seeds or more."""
    total_steps: int = 100_000
    """Environment steps; the last whole iteration within it is the run's last."""

    epsilon: Any = 0.2
    """Clip half-width: the policy has no incentive to push the probability ratio beyond
    [1 - epsilon, 1 + epsilon]. 0.1 to 0.3 is usual; larger learns faster and breaks more easily;
    ``none`` does not clip."""
    epsilon_high: Any = None
    """Upper half-width where it differs from epsilon (clip-higher, arXiv:2503.14476: 0.28 over
    0.2); none for a symmetric clip."""
    epsilon_schedule: Schedule = Schedule.constant
    """linear anneals the clip to 0 over the run, as PPO's Atari settings do."""
    dual_clip: Any = None
    """Lower bound c > 1 on the objective of a bad action, c * A (arXiv:1912.09729, c = 3); none for
    PPO's own objective."""
    value_epsilon: Any = None
    """Clip half-width of the value loss; none (off) is better by the evidence. Its own key, so that
    a sweep of epsilon does not sweep it."""
    target_kl: Any = None
    """Nats: a run sits out the rest of an update when a minibatch's k3 KL exceeds 1.5 times this.
    0.01 to 0.03 where wanted; none never stops."""

    lr: float = 3e-4
    """Adam's step size. 1e-4 to 1e-3; larger needs a smaller epsilon or fewer epochs."""
    lr_schedule: Schedule = Schedule.constant
    """linear: the first update runs at lr, the last of n at lr / n (CleanRL's; SB3 ends at 0)."""
    adam_eps: float = 1e-5
    """Added to the root of Adam's second moment; PPO's 1e-5, torch's default is 1e-8."""
    max_grad_norm: Any = 0.5
    """Limit of the gradient's norm over actor and critic together; none does not clip."""
    separate_grad_clip: bool = False
    """Clip the actor's and the critic's gradient each at max_grad_norm, so that a large value loss
    does not shrink the policy's step. memory=parked always does: it never holds both gradients."""

    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    gae_lambda: float = 0.95
    """GAE's lambda, in [0, 1]: 0 trusts the critic, 1 the returns."""
    bootstrap_truncated: bool = True
    """Whether a time limit counts the value of the episode's true last observation (it should);
    false treats it as a termination, as many older PPOs do."""

    num_envs: int = 8
    """Environments stepped together."""
    num_steps: int = 128
    """Steps of each environment per iteration."""
    num_epochs: int = 4
    """Passes over each rollout; more learns faster per step and drifts further from the data."""
    num_minibatches: int = 4
    """Gradient steps per epoch; must divide num_envs * num_steps."""
    advantage_normalization: AdvantageNormalization = AdvantageNormalization.minibatch
    """Rows over which advantages are standardised: each minibatch, the whole rollout, or none."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, 0 to 0.02."""
    value_coef: float = 0.5
    """Weight of the value loss, itself half a mean squared error (CleanRL's; SB3's has no half)."""

    device: str = "auto"
    """auto (CUDA where there is one, else the CPU), cpu, cuda or cuda:N."""
    dtype: Dtype = Dtype.float32
    """bfloat16 runs the networks under autocast, with float32 weights."""
    matmul_precision: MatmulPrecision = MatmulPrecision.highest
    """Arithmetic of float32 matrix products on CUDA: high allows TF32, which keeps 10 bits behind
    the point instead of 23 and is worth it for wide layers; medium allows bfloat16's 7."""
    vram_budget_gib: Any = "auto"
    """A run that is forecast to need more device memory is refused before it starts. auto: what is
    free on the card, no limit on the CPU; none never refuses."""
    vram_limit_gib: Any = None
    """Emulates a smaller card: allocations beyond it fail as they would there. CUDA only."""
    forecast: bool = False
    """Print what the run would need, by category, and train nothing; no GPU is needed."""
    forecast_format: ForecastFormat = ForecastFormat.table
    """json prints the forecast for programs, alone on stdout."""
    profile: Profile = Profile.auto
    """Count memory by category in the first iteration and profile a short window after warm-up."""
    compile: Compile = Compile.auto
    """Run an iteration as compiled programs, some four times as fast for small networks on the CPU.
    The first run of a kind compiles for a minute or so, later ones load what it left in
    ~/.cache/ppo_lab. auto: from 1 million environment steps on, 6 for runs that share a stack. On
    CUDA programs are CUDA graphs, and auto makes none: only always, until it has been measured."""
    num_threads: Any = "auto"
    """CPU threads for tensor arithmetic. auto: 1 where a gradient step is small (threads then
    lose, badly so beside another busy process), else every core this process may use."""

    def __post_init__(self) -> None:
        """Check every value that can be checked by itself or against another."""
        self.epsilon = check_number("epsilon", self.epsilon, above=0.0, off=True)
        for key in ("epsilon_high", "value_epsilon", "target_kl", "max_grad_norm"):
            setattr(self, key, check_number(key, getattr(self, key), above=0.0, off=True))
        if self.vram_budget_gib != "auto":
            self.vram_budget_gib = check_number(
                "vram_budget_gib", self.vram_budget_gib, above=0.0, off=True
            )
        self.vram_limit_gib = check_number(
            "vram_limit_gib", self.vram_limit_gib, above=0.0, off=True
        )
        self.dual_clip = check_number("dual_clip", self.dual_clip, above=1.0, off=True)
        for key in ("lr", "adam_eps"):
            check_number(key, getattr(self, key), above=0.0)
        for key in ("gamma", "gae_lambda"):
            check_number(key, getattr(self, key), at_least=0.0, at_most=1.0)
        for key in ("entropy_coef", "value_coef"):
            check_number(key, getattr(self, key), at_least=0.0)
        for key in ("num_envs", "num_steps", "num_epochs", "num_minibatches", "total_steps"):
            if getattr(self, key) < 1:
                raise ConfigError(key, getattr(self, key), "must be a whole number >= 1")
        if not 0 <= self.seed < 2**63:
            raise ConfigError("seed", self.seed, "must be a whole number from 0 to 2^63 - 1")
        if not re.fullmatch(r"[A-Za-z0-9._=-]{1,64}", self.name):
            raise ConfigError("name", self.name, "must be 1 to 64 letters, digits, or any of ._=-")
        self._check_sizes()
        self._check_secrets()
        self._check_threads()
        if self.compile is Compile.always and (obstacle := self.compile_obstacle):
            raise ConfigError("compile", self.compile.value, f"cannot be had with {obstacle}")
        if not self.forecast:  # which runs nothing there
            self.torch_device  # noqa: B018 - raises for a device that is not there
        self.network.check()
        self.memory.check(self.num_rows // self.num_minibatches)
        if self.separate_grad_clip and self.memory.shares_trunk:
            raise ConfigError(
                "separate_grad_clip",
                self.separate_grad_clip,
                f"has no meaning with memory={self.memory.name}: the trunk has one gradient",
            )
        self.tracking.check()

    def _check_sizes(self) -> None:
        if self.num_rows % self.num_minibatches:
            raise ConfigError(
                "num_minibatches",
                self.num_minibatches,
                f"must divide num_envs * num_steps = {self.num_envs} * {self.num_steps} "
                f"= {self.num_rows}; nearest that does: {self._nearest_divisor()}",
            )
        if self.total_steps < self.num_rows:
            raise ConfigError(
                "total_steps",
                self.total_steps,
                f"must be at least one rollout, num_envs * num_steps = {self.num_rows}",
            )
        if self.epsilon is None and self.epsilon_high is not None:
            raise ConfigError(
                "epsilon_high", self.epsilon_high, "has no effect with epsilon=none; leave it out"
            )

    def _check_secrets(self) -> None:
        """Refuse what looks like a credential: the config is written to files and to W&B."""
        for key in _nested_keys(self.env.kwargs):
            if re.search(r"(?i)(api_?key|token|secret|password)$", key):
                raise ConfigError(
                    f"env.kwargs.{key}",
                    REDACTED,
                    "looks like a secret, and configs are saved in clear; pass it by environment",
                )

    def _nearest_divisor(self) -> int:
        small = [d for d in range(1, math.isqrt(self.num_rows) + 1) if self.num_rows % d == 0]
        divisors = {*small, *(self.num_rows // d for d in small)}
        return min(divisors, key=lambda d: abs(d - self.num_minibatches))

    def _check_threads(self) -> None:
        if self.num_threads != "auto":
            is_count = isinstance(self.num_threads, int) and not isinstance(self.num_threads, bool)
            if not is_count or self.num_threads < 1:
                raise ConfigError(
                    "num_threads", self.num_threads, "must be auto or a whole number >= 1"
                )

    def check_env(self) -> EnvSpec:
        """Return what the environment looks like; raise ``ConfigError`` if it cannot be used."""
        return self.env.check()

    @property
    def num_rows(self) -> int:
        """Environment steps of one rollout."""
        return self.num_envs * self.num_steps

    @property
    def num_iterations(self) -> int:
        """Iterations in the run."""
        return self.total_steps // self.num_rows

    @property
    def clips_separately(self) -> bool:
        """Whether actor and critic are each clipped by their own gradient's norm."""
        return self.separate_grad_clip or self.memory.always_clips_separately

    @property
    def epsilon_label(self) -> str:
        """Epsilon as a person writes it."""
        return "none" if self.epsilon is None else f"{self.epsilon:g}"

    @property
    def torch_device(self) -> torch.device:
        """The training device."""
        has_cuda = torch.cuda.is_available()
        if self.device == "auto":
            return torch.device("cuda" if has_cuda else "cpu")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ConfigError("device", self.device, "must be auto, cpu, cuda or cuda:N")
        device = torch.device(self.device)
        if device.type == "cuda" and not has_cuda:
            raise ConfigError(
                "device", self.device, "there is no CUDA device here; use device=auto or device=cpu"
            )
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                "device", self.device, f"must be cuda:0 to cuda:{torch.cuda.device_count() - 1}"
            )
        return device

    @property
    def is_on_cuda(self) -> bool:
        """Whether the run is on CUDA, or would be where there is such a device."""
        return self.device.startswith("cuda") or (
            self.device == "auto" and torch.cuda.is_available()
        )

    @property
    def weights_dtype(self) -> torch.dtype:
        """Type of weights and observations."""
        return torch.float64 if self.dtype is Dtype.float64 else torch.float32

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Autocast's type; None computes in the weights' own."""
        return torch.bfloat16 if self.dtype is Dtype.bfloat16 else None

    @property
    def compile_obstacle(self) -> str | None:
        """What keeps the run from being compiled; None if nothing does."""
        memory = self.memory
        obstacles = {
            f"memory={memory.name}": memory.max_lanes is not None,
            "memory.rollout_place=host": memory.rollout_place is not Place.device,
            "memory.num_micro_batches": memory.num_micro_batches > 1,
            "memory.checkpoint_activations=true": memory.checkpoint_activations,
            "dtype=bfloat16 on the CPU": self.dtype is Dtype.bfloat16 and not self.is_on_cuda,
        }
        return next((name for name, stands in obstacles.items() if stands), None)

    @property
    def is_profiled(self) -> bool:
        """Whether memory is counted by category, and a window profiled where there is CUDA."""
        if self.profile is Profile.auto:
            return self.torch_device.type == "cuda"
        return self.profile is Profile.always

    def as_dict(self) -> dict[str, Any]:
        """Return the config as plain, nested values for a tracker.

        ``epsilon`` is a number or absent, ``clipped`` says which, so that runs can be filtered and
        plotted by it.
        """
        values: dict[str, Any] = to_jsonable(dataclasses.asdict(self))
        place = self.memory.optimizer_place.value
        strategy = {"strategy": self.memory.name, "optimizer_place": place}
        values["memory"] = strategy | values["memory"]
        values["clipped"] = self.epsilon is not None
        if self.epsilon is None:
            del values["epsilon"]
        return values

    def choose_num_threads(self, spec: EnvSpec) -> int:
        """Return the CPU threads to use.

        A second thread gains up to 1.6 to 2 times from about 0.5 GFLOP per gradient step on, but
        only on an idle machine: beside one busy process it costs 3 to 30 times below 2 GFLOP, and
        about 2 times above (benchmarks/results/threads.md). So below 2 GFLOP it is one.
        """
        if self.num_threads != "auto":
            return int(self.num_threads)
        num_trunks = 1 if self.memory.shares_trunk else 2
        parameters = num_trunks * self.network.num_trunk_parameters(spec.observation_size)
        flop = 6 * parameters * self.num_rows / self.num_minibatches
        return 1 if flop < 2e9 else _usable_cores()


def _nested_keys(values: dict[str, Any]) -> Iterator[str]:
    """Return every key of nested dictionaries, dotted."""
    for key, value in values.items():
        yield str(key)
        if isinstance(value, dict):
            yield from (f"{key}.{below}" for below in _nested_keys(value))


def _usable_cores() -> int:
    """Return the cores this process may use; where the system does not say, all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
