"""How exactly float32 matrices are multiplied: a setting of the process, made for each run."""

from __future__ import annotations

import logging

import torch

from ppo_lab.config.choices import Dtype, MatmulPrecision
from ppo_lab.config.run import Config

__all__ = ["set_matmul_precision"]

_LOG = logging.getLogger(__name__)


def set_matmul_precision(config: Config) -> None:
    """Have this process multiply float32 matrices as ``config`` says.

    On the CPU torch would take bfloat16 where the processor has it; a run's numbers do not depend
    on that, so there it is always highest. A setting without effect is logged.
    """
    obstacle = None
    if config.torch_device.type != "cuda":
        obstacle = "this run is not on CUDA"
    elif config.dtype is not Dtype.float32:
        obstacle = f"no product is in float32 with dtype={config.dtype.value}"
    chosen = MatmulPrecision.highest if obstacle else config.matmul_precision
    if chosen is not config.matmul_precision:
        name = config.matmul_precision.value
        _LOG.warning("matmul_precision=%s has no effect: %s", name, obstacle)
    torch.set_float32_matmul_precision(chosen.value)
