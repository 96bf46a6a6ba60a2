"""Settings of the process that a run needs: CPU threads and float32 matrix precision."""

from __future__ import annotations

import logging

import torch

from ppo_lab.config.choices import Dtype, MatmulPrecision
from ppo_lab.config.run import Config
from ppo_lab.utils.cores import idle_cores

__all__ = ["configure_torch"]

_LOG = logging.getLogger(__name__)


def configure_torch(config: Config) -> None:
    """Set the process's CPU threads and float32 matrix precision; call it before each ``Trainer``.

    On the CPU the precision is always the highest: otherwise torch would use bfloat16 on processors
    that support it, and numbers would depend on the machine. A precision without effect is logged.
    """
    torch.set_num_threads(_choose_num_threads(config))
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


def _choose_num_threads(config: Config) -> int:
    """Return the number of CPU threads.

    On an idle machine a second thread is 1.6 to 2 times as fast from about 0.5 GFLOP per
    gradient step; beside a busy process it is 3 to 30 times slower below 2 GFLOP, and about 2
    times above (benchmarks/results/threads.md). So auto is 1 below 2 GFLOP, and the number
    of idle cores above.
    """
    num_parameters = config.network.num_trunk_parameters(config.check_env())
    if config.num_threads != "auto":
        return int(config.num_threads)
    flop = 6 * config.memory.num_trunks * num_parameters * config.num_rows / config.num_minibatches
    return 1 if flop < 2e9 else idle_cores()
