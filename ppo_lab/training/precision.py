"""Settings of the process that a run needs: CPU threads and float32 matrix precision."""

from __future__ import annotations

import logging

import torch

from ppo_lab.config.choices import Dtype, MatmulPrecision
from ppo_lab.config.run import Config

__all__ = ["configure_torch"]

_LOG = logging.getLogger(__name__)


def configure_torch(config: Config) -> None:
    """Set the process's CPU threads and float32 matrix precision; call it before each ``Trainer``.

    On the CPU the precision is always the highest: otherwise torch would use bfloat16 on processors
    that support it, and numbers would depend on the machine. A precision without effect is logged.
    """
    torch.set_num_threads(config.choose_num_threads(config.check_env()))
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
