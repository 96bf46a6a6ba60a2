"""The precision of matrix products is a run's own, has an effect on CUDA alone, and says so."""

import dataclasses
import json

import pytest
import torch

from ppo_lab.compiler.compiled import CompileSpec
from ppo_lab.compiler.program_cache import ProgramCache
from ppo_lab.config.choices import Dtype, MatmulPrecision
from ppo_lab.config.lanes import check_stack, stack_key
from ppo_lab.forecasting.dry_run import dry_run
from ppo_lab.training.precision import configure_torch
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.errors import ConfigError
from tests.helpers.trainers import config, lanes_of


@pytest.fixture(autouse=True)
def restore_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("name", ["highest", "high", "medium"])
def test_a_run_on_cuda_sets_its_precision(name, caplog):
    torch.set_float32_matmul_precision("high" if name == "highest" else "highest")
    base = dataclasses.replace(config(f"matmul_precision={name}"), device="cuda")
    configure_torch(base)
    assert torch.get_float32_matmul_precision() == name
    assert not caplog.text


def test_a_run_on_the_cpu_is_exact_and_says_what_has_no_effect(caplog):
    torch.set_float32_matmul_precision("medium")  # as another run has left it
    configure_torch(config("matmul_precision=high"))
    assert torch.get_float32_matmul_precision() == "highest"
    assert "matmul_precision=high has no effect: this run is not on CUDA" in caplog.text


@pytest.mark.usefixtures("fake_cuda")
def test_without_float32_products_it_has_no_effect(caplog):
    base = config("matmul_precision=high")
    configure_torch(dataclasses.replace(base, device="cuda", dtype=Dtype.bfloat16))
    assert torch.get_float32_matmul_precision() == "highest"
    assert "no product is in float32 with dtype=bfloat16" in caplog.text


def test_lanes_and_programs_share_one_precision(tmp_path):
    base = config()
    other = dataclasses.replace(base, matmul_precision=MatmulPrecision.high)
    assert json.loads(stack_key(other))["matmul_precision"] == "high"
    assert stack_key(base) != stack_key(other)
    with pytest.raises(ConfigError, match="matmul_precision"):
        check_stack(lanes_of(base, {}, {"matmul_precision": MatmulPrecision.high}))
    spec = CompileSpec("double", lambda _, x: x * 2.0, (torch.ones(2),))
    trainers = [Trainer([dataclasses.replace(each)]) for each in (base, other)]
    loaders = [trainer._compilation._cache for trainer in trainers]
    assert all(isinstance(loader, ProgramCache) for loader in loaders)
    assert loaders[0].key(spec) != loaders[1].key(spec)


def test_a_forecast_leaves_the_precision_of_a_run_beside_it():
    torch.set_float32_matmul_precision("high")
    dry_run(config("matmul_precision=medium", "num_steps=16"))
    assert torch.get_float32_matmul_precision() == "high"
