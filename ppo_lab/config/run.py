"""The checked configuration of one run.

Every parameter's type, default, unit and meaning is defined here, once; ``none`` turns a number
off. ``Config`` checks itself on construction, so the trainer needs no checks.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import MISSING

from ppo_lab.config.checkpoint import CheckpointConfig
from ppo_lab.config.checks import check_fits, check_whole
from ppo_lab.config.choices import (
    Compile,
    Dtype,
    FitOver,
    ForecastFormat,
    MatmulPrecision,
    Profile,
    Schedule,
)
from ppo_lab.config.evaluation import EvaluationConfig
from ppo_lab.config.hyperparameters import Hyperparameters
from ppo_lab.envs.base import EnvSpec
from ppo_lab.envs.config import EnvConfig
from ppo_lab.memory import MemoryStrategy
from ppo_lab.networks import NETWORKS, NetworkConfig
from ppo_lab.ppo.baselines import AutoBaseline, Baseline, Gae, GroupBaseline, Grpo, PerStep
from ppo_lab.ppo.losses import PolicyLoss
from ppo_lab.ppo.update import AdvantageNormalization
from ppo_lab.tracking import TrackingConfig
from ppo_lab.utils.errors import ConfigError, check_number
from ppo_lab.utils.json_files import to_jsonable

__all__ = ["Compile", "Config", "Dtype", "ForecastFormat", "Profile", "Schedule"]

_MOST = {
    "num_envs": 10**6, "num_steps": 10**6, "num_epochs": 1000, "num_minibatches": 10**6,
    "total_steps": 10**12,
}  # fmt: skip
"""Far more than any run has: what is above is a slip, and would fill the memory or never end."""
_OF_CRITIC = ("value_epsilon", "gae_lambda_policy", "gae_lambda_value")
"""Options that are off by default, and mean nothing without a critic."""
_MOST_ROWS, _MOST_PARAMETERS, _MOST_THREADS = 10**9, 10**10, 1024


@dataclass(kw_only=True)
class Config(EvaluationConfig, Hyperparameters):
    """One run: environment, network, memory strategy and PPO's hyperparameters."""

    env: EnvConfig = MISSING
    network: NetworkConfig = MISSING
    memory: MemoryStrategy = MISSING
    tracking: TrackingConfig = MISSING
    baseline: Baseline = field(default_factory=AutoBaseline)

    name: str = "run"
    """Suffix of the run folder's name; letters, digits and ``._=-``."""
    seed: int = 1
    """Seed of all random numbers of the run. Compare settings over five seeds or more."""
    total_steps: int = 100_000
    """Environment steps, rounded down to whole iterations."""

    # Device, memory and speed
    device: str = "auto"
    """auto (CUDA where there is one, else the CPU), cpu, cuda or cuda:N."""
    dtype: Dtype = Dtype.float32
    """bfloat16 runs the networks under autocast, with float32 weights."""
    matmul_precision: MatmulPrecision = MatmulPrecision.highest
    """Precision of float32 matrix products on CUDA: high allows TF32 (10 bits of mantissa, not 23),
    which pays off for wide layers; medium allows bfloat16 (7 bits)."""
    vram_budget_gib: Any = "auto"
    """Refuse a run whose forecast device memory exceeds this, before it starts. auto: the card's
    free memory, no limit on the CPU; none: no limit."""
    vram_limit_gib: Any = None
    """Emulate a smaller card: allocations beyond this limit fail. CUDA only."""
    forecast: bool = False
    """Print the forecast of memory by category and train nothing; needs no GPU."""
    forecast_format: ForecastFormat = ForecastFormat.table
    """json prints machine-readable output, alone on stdout."""
    fit: bool = False
    """Print the largest run that fits ``vram_budget_gib`` by forecast, what it needs and its
    command; train nothing. Implies ``forecast``."""
    fit_over: FitOver = FitOver.num_envs
    """What ``fit`` varies: num_envs (the most), network (the largest named one of its kind),
    num_minibatches (the fewest), memory (the cheapest change of strategy or options)."""
    profile: Profile = Profile.auto
    """Count memory by category in the first iteration and profile a short window after warm-up."""
    compile: Compile = Compile.auto
    """Run an iteration as compiled programs, about four times as fast for small networks on the
    CPU. The first run of a kind compiles for a minute; later runs load ~/.cache/ppo_lab. auto: on
    the CPU from 1 million environment steps, 6 million in a stack. On CUDA (CUDA graphs) never."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    num_threads: Any = "auto"
    """CPU threads of torch. auto: 1 where a gradient step is small (more are then slower, by far
    beside another busy process), else the cores that this process may use and nobody else does."""

    def __post_init__(self) -> None:
        """Check and convert every value."""
        self.check_numbers()
        self.forecast = self.forecast or self.fit
        for key in ("vram_budget_gib", "vram_limit_gib"):
            if (key, getattr(self, key)) != ("vram_budget_gib", "auto"):
                setattr(self, key, check_number(key, getattr(self, key), above=0.0, off=True))
        for key, most in _MOST.items():
            check_whole(key, getattr(self, key), at_most=most)
        if not 0 <= self.seed < 2**63:
            raise ConfigError("seed", self.seed, "must be a whole number from 0 to 2^63 - 1")
        if not re.fullmatch(r"[A-Za-z0-9._=-]{1,64}", self.name):
            raise ConfigError("name", self.name, "must be 1 to 64 letters, digits, or any of ._=-")
        self._check_objective()
        self._check_policy_start()
        self._check_sizes()
        check_whole("num_threads", self.num_threads, at_most=_MOST_THREADS, auto=True)
        if self.compile is Compile.always and (obstacle := self.compile_obstacle):
            raise ConfigError("compile", self.compile.value, f"cannot be had with {obstacle}")
        self._check_device()
        self.network.check()
        per_minibatch = self.num_units // self.num_minibatches
        self.memory.check(per_minibatch, "sequences" if self.keeps_sequences else "rows")
        if self.separate_grad_clip and (self.memory.shares_trunk or not self.memory.has_critic):
            allowed = f"has no effect with memory={self.memory.name}: there is one gradient"
            raise ConfigError("separate_grad_clip", self.separate_grad_clip, allowed)
        self.tracking.check()
        self.checkpoint.check()

    def _check_objective(self) -> None:
        baseline = self.resolved_baseline
        if baseline.needs_critic is not self.memory.has_critic:
            has = "has a critic" if self.memory.has_critic else "has no critic"
            allowed = f"memory={self.memory.name} {has}; baseline=auto suits it"
            raise ConfigError("baseline", baseline.name, allowed)
        baseline.check(self.num_envs)
        for key in () if self.memory.has_critic else _OF_CRITIC:
            if (value := getattr(self, key)) is not None:
                raise ConfigError(key, value, f"memory={self.memory.name} has no critic for it")
        if self.advantage_normalization is (over := AdvantageNormalization).auto:
            self.advantage_normalization = over.minibatch if baseline.normalizes else over.none
        if self.whole_episodes:
            return
        for key in ("policy_loss", "aggregation"):
            value, usual = getattr(self, key), getattr(type(self), key)
            if value is not usual and value is not PolicyLoss.cispo:
                allowed = "needs whole episodes: memory=critic_free, or texts"
                raise ConfigError(key, value.value, allowed)

    def _check_policy_start(self) -> None:
        key, begin = "policy_start_iteration", self.policy_start_iteration
        check_whole(key, begin, at_least=0)
        if begin and not self.memory.has_critic:
            raise ConfigError(key, begin, f"memory={self.memory.name} has no critic to train first")

    def _check_device(self) -> None:
        # A forecast needs no device.
        if not self.forecast and self.torch_device.type != "cuda" and self.vram_limit_gib:
            allowed = "emulates a smaller card: it needs device=cuda"
            raise ConfigError("vram_limit_gib", self.vram_limit_gib, allowed)

    def _check_sizes(self) -> None:
        if self.num_rows > _MOST_ROWS:
            allowed = f"with num_steps={self.num_steps} a rollout of {self.num_rows:,} rows"
            raise ConfigError("num_envs", self.num_envs, f"{allowed}; at most {_MOST_ROWS:,}")
        if self.num_units % self.num_minibatches:
            near = min(self.num_minibatches, self.num_units)
            outwards = (number for off in range(near) for number in (near - off, near + off))
            nearest = next(number for number in outwards if self.num_units % number == 0)
            numbers = f"{self.num_envs} * {self.rollout_steps} = {self.num_rows}"
            product = f"num_envs * num_steps = {numbers}"
            if self.keeps_sequences:
                product = f"num_envs = {self.num_envs}, as sequences stay whole"
            allowed = f"must divide {product}; nearest that does: {nearest}"
            raise ConfigError("num_minibatches", self.num_minibatches, allowed)
        if self.total_steps < self.num_rows and not self.whole_episodes:
            allowed = f"must be at least one rollout, num_envs * num_steps = {self.num_rows}"
            raise ConfigError("total_steps", self.total_steps, allowed)

    def check_env(self) -> EnvSpec:
        """Return the environment's spaces; raise ``ConfigError`` if it cannot be used."""
        spec = self.env.check()
        self.env.check_rollout(self.rollout_steps)
        self.check_evaluation(self.env)
        self.network.check_env(spec)
        if spec.num_tokens is not None:
            self.network.check_num_steps(self.rollout_steps)
        num_parameters = self.network.num_trunk_parameters(spec)
        if num_parameters > _MOST_PARAMETERS:
            allowed = f"a network of {num_parameters:,} parameters; at most {_MOST_PARAMETERS:,}"
            raise ConfigError("network", "...", allowed)
        if not (self.forecast or self.is_on_cuda):
            # Weight, gradient and two moments; observations and at least six numbers a row.
            check_fits("network", "...", 16 * self.memory.num_trunks * num_parameters)
            check_fits("num_envs", self.num_envs, 4 * self.num_rows * (spec.observation_size + 6))
        return spec

    @property
    def lane_limit(self) -> tuple[str, str, int] | None:
        """The key and value that limit the lanes of a stack, and the most; None for any number."""
        if self.memory.lane_limit is not None:
            return self.memory.lane_limit
        if self.network.max_lanes is not None:
            name = next(n for n, kind in NETWORKS.items() if type(self.network) is kind)
            return "network", name, self.network.max_lanes
        return None

    @property
    def whole_episodes(self) -> bool:
        """Whether each rollout is one episode per environment; then only live steps count."""
        return self.env.whole_episodes or not self.memory.has_critic

    @property
    def keeps_sequences(self) -> bool:
        """Whether minibatches consist of whole sequences, not of single steps."""
        return self.network.reads_sequences or self.policy_loss is PolicyLoss.gspo

    @property
    def group_size(self) -> int:
        """Environments whose whole episodes begin alike."""
        baseline = self.resolved_baseline
        return baseline.group_size if isinstance(baseline, GroupBaseline) else 1

    @property
    def resolved_baseline(self) -> Baseline:
        """The baseline, with ``auto`` resolved."""
        if not isinstance(self.baseline, AutoBaseline):
            return self.baseline
        if self.memory.has_critic:
            return Gae()
        group_size = math.gcd(self.num_envs, GroupBaseline.group_size)
        kind = Grpo if self.env.whole_episodes else PerStep
        return kind(group_size=group_size)

    @property
    def rollout_steps(self) -> int:
        """T, steps of one rollout: whole episodes, but for texts, have room for the longest."""
        if self.whole_episodes and not self.env.whole_episodes:
            return self.env.episode_limit()
        return self.num_steps

    @property
    def most_envs(self) -> int:
        """The most environments that may be asked for."""
        return min(_MOST["num_envs"], _MOST_ROWS // self.rollout_steps)

    @property
    def num_rows(self) -> int:
        """Steps of one rollout; not all of them live if episodes are whole."""
        return self.num_envs * self.rollout_steps

    @property
    def num_units(self) -> int:
        """What minibatches are made of: the rows of a rollout, or its sequences."""
        return self.num_envs if self.keeps_sequences else self.num_rows

    @property
    def num_iterations(self) -> int:
        """Iterations of the run: rollout and update. Of whole episodes, at least so many."""
        return max(self.total_steps // self.num_rows, 1)

    @property
    def num_counted_steps(self) -> int:
        """Environment steps after which the run has ended; whole episodes may exceed them."""
        if self.whole_episodes:
            return self.total_steps
        return self.num_iterations * self.num_rows

    @property
    def clips_separately(self) -> bool:
        """Whether the gradients of actor and critic are clipped separately."""
        return self.separate_grad_clip or self.memory.always_clips_separately

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
            allowed = "there is no CUDA device here; use device=auto or device=cpu"
            raise ConfigError("device", self.device, allowed)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            allowed = f"must be cuda:0 to cuda:{torch.cuda.device_count() - 1}"
            raise ConfigError("device", self.device, allowed)
        return device

    @property
    def is_on_cuda(self) -> bool:
        """Whether the run uses CUDA, available here or not."""
        has_cuda = self.device == "auto" and torch.cuda.is_available()
        return has_cuda or self.device.startswith("cuda")

    @property
    def weights_dtype(self) -> torch.dtype:
        """Data type of weights and observations."""
        return torch.float64 if self.dtype is Dtype.float64 else torch.float32

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Data type of autocast; None for no autocast."""
        return torch.bfloat16 if self.dtype is Dtype.bfloat16 else None

    @property
    def compile_obstacle(self) -> str | None:
        """The setting that prevents compilation; None if there is none."""
        obstacles = {
            self.memory.compile_obstacle: self.memory.compile_obstacle is not None,
            "whole episodes": self.whole_episodes,
            "a network that reads sequences": self.network.reads_sequences,
            "policy_start_iteration": self.policy_start_iteration > 0,
            "dtype=bfloat16 on the CPU": self.dtype is Dtype.bfloat16 and not self.is_on_cuda,
        }
        return next((name for name, applies in obstacles.items() if applies), None)

    @property
    def is_profiled(self) -> bool:
        """Whether memory is counted by category, and on CUDA a window is profiled."""
        if self.profile is Profile.auto:
            return self.torch_device.type == "cuda"
        return self.profile is Profile.always

    def as_dict(self) -> dict[str, Any]:
        """Return the config as nested JSON values, for trackers.

        Without an ``epsilon`` the key is absent and ``clipped`` false, to filter and plot runs by.
        """
        values: dict[str, Any] = to_jsonable(dataclasses.asdict(self))
        place = self.memory.optimizer_place.value
        strategy = {"strategy": self.memory.name, "optimizer_place": place}
        values["memory"] = strategy | values["memory"]
        values["baseline"] = {"name": self.resolved_baseline.name} | values["baseline"]
        values["clipped"] = self.epsilon is not None
        if self.epsilon is None:
            del values["epsilon"]
        return values
