"""The GPU benchmark's limits, by hand, and what it refuses; its speeds need a GPU."""

import pytest
import torch

from benchmarks import gpu
from ppo_lab.config.compose import register


def test_an_updates_limits_are_the_stated_formulas():
    # Two lanes of 2 environments x 8 steps: R = 16, E = 4, K = 16. A lane of 2 x 64, twice, over 4
    # observations and 2 actions has 9,155 parameters and 256 hidden units; a row 4 + 2 + 4 columns.
    register()
    trainer = gpu.build(gpu.Case(2, 2), "eager", ["device=cpu", "num_steps=8"])
    limits = gpu.limits_of(trainer)
    assert limits.flop == 6 * 4 * 2 * 16 * 9155
    assert limits.num_bytes == 4 * (4 * 2 * 16 * (12 * 256 + 2 * 10) + 7 * 16 * 2 * 9155)


def test_without_cuda_it_says_so_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^benchmarks.gpu: there is no CUDA device here.*$"):
        gpu.main([])


def test_a_trial_on_the_cpu_is_never_kept():
    with pytest.raises(SystemExit, match="--write keeps what a GPU did"):
        gpu.main(["--device", "cpu", "--write"])
