"""Enums of a run's keys."""

from __future__ import annotations

from enum import Enum

__all__ = [
    "Compile", "Dtype", "FitOver", "ForecastFormat", "MatmulPrecision", "Profile", "Schedule",
]  # fmt: skip


class Schedule(Enum):
    """Schedule of a hyperparameter over the run."""

    constant = "constant"
    linear = "linear"


class Profile(Enum):
    """Whether memory is counted by category and a short window of training is profiled."""

    auto = "auto"  # on CUDA
    never = "never"
    always = "always"


class Compile(Enum):
    """Whether an iteration runs as compiled programs."""

    auto = "auto"  # on the CPU, for runs long enough to repay compilation
    never = "never"
    always = "always"


class ForecastFormat(Enum):
    """Output format of ``forecast=true``."""

    table = "table"
    json = "json"


class FitOver(Enum):
    """What ``fit=true`` varies."""

    num_envs = "num_envs"
    network = "network"  # the named ones of the same kind
    num_minibatches = "num_minibatches"  # fewer are larger
    memory = "memory"  # strategy and options, as little as fits


class Dtype(Enum):
    """Floating-point type of the networks."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"


class MatmulPrecision(Enum):
    """Precision of float32 matrix products on CUDA, by torch's names."""

    highest = "highest"  # float32
    high = "high"  # TF32, or a sum of several bfloat16 products
    medium = "medium"  # bfloat16 where available, else as high
