"""How many workers, on which GPUs: that of ``device=cuda:N`` only, all of them for ``cuda``."""

import dataclasses

import pytest
import torch

from ppo_lab.config.run import Config
from ppo_lab.forecasting import forecast as forecasting
from ppo_lab.workers.resources import choose_num_workers
from ppo_lab.workers.trial import _in_worker
from tests.helpers.trainers import config


@pytest.fixture(autouse=True)
def four_cards(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


def on(device) -> Config:
    return dataclasses.replace(config(), device=device)


@pytest.mark.parametrize(
    ("device", "visible", "names"),
    [
        ("cuda", None, ["0", "1", "2", "3"]),
        ("cuda:1", None, ["1"]),
        ("cuda:1", "4,6,7", ["6"]),
        ("auto", "GPU-a,GPU-b", ["GPU-a", "GPU-b"]),
        ("cpu", None, []),
    ],
)
def test_a_named_gpu_is_the_only_one_that_workers_see(device, visible, names, monkeypatch):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert choose_num_workers(3, on(device)) == (3, names)
    if names:
        assert choose_num_workers("auto", on(device))[0] == len(names)


def test_a_worker_calls_its_only_gpu_by_the_name_that_it_has_there(monkeypatch):
    named = on("cuda:3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert _in_worker(named).device == "cuda"
    assert _in_worker(dataclasses.replace(named, device="cpu")).device == "cpu"


def test_a_forecast_asks_the_gpu_that_the_run_names(monkeypatch):
    assert forecasting._card(on("cuda:2")) == torch.device("cuda:2")
    assert forecasting._card(on("cpu")) == torch.device("cuda")
    assert forecasting._key(on("cuda:1")) != forecasting._key(on("cuda:2"))
    gone = on("cuda:3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert forecasting._card(gone) == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert forecasting._card(on("auto")) is None
