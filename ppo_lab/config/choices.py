"""The named choices among a run's own keys."""

from __future__ import annotations

from enum import Enum

__all__ = ["Compile", "Dtype", "ForecastFormat", "MatmulPrecision", "Profile", "Schedule"]


class Schedule(Enum):
    """How a number changes over the run."""

    constant = "constant"
    linear = "linear"


class Profile(Enum):
    """Whether memory is counted by category and a short window is profiled, beside training."""

    auto = "auto"  # on CUDA
    never = "never"
    always = "always"


class Compile(Enum):
    """Whether an iteration runs as compiled programs."""

    auto = "auto"  # on the CPU, where the run is long enough to repay the compiler
    never = "never"
    always = "always"


class ForecastFormat(Enum):
    """How ``forecast=true`` prints."""

    table = "table"
    json = "json"


class Dtype(Enum):
    """Arithmetic of the networks."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"


class MatmulPrecision(Enum):
    """Arithmetic of float32 matrix products on CUDA, by torch's names."""

    highest = "highest"  # float32
    high = "high"  # TF32, or as good from several bfloat16 products
    medium = "medium"  # bfloat16 where the library has it, else as high
