"""What is forecast on fake tensors is what a real run holds and moves, to the byte."""

import dataclasses
import sys

import pytest
import torch

from ppo_lab.devices.placement import Place
from ppo_lab.forecasting import forecast as forecasting
from ppo_lab.forecasting.categories import Category, MemoryKey
from ppo_lab.forecasting.counting import counted_trainer, ledger_of
from ppo_lab.forecasting.dry_run import dry_run
from ppo_lab.forecasting.forecast import cublas_workspace, forecast
from ppo_lab.memory import STRATEGIES
from tests.helpers.commands import ppo_lab
from tests.helpers.trainers import config

ROLLOUT = ("num_envs=20", "num_steps=8", "num_epochs=2", "num_minibatches=2", "total_steps=160")
DEEP = "network.hidden=[32,32,32,32,32]"
CHECKPOINTED = (DEEP, "memory.checkpoint_activations=true")
IN_PARTS = (DEEP, "memory.num_micro_batches=4")
ON_HOST = (DEEP, "memory.rollout_place=host")
ALL = (*CHECKPOINTED, "dtype=bfloat16", "memory.num_micro_batches=2", "memory.rollout_place=host")
HALF = "memory.offload_fraction=0.5"
SAVED_ON_HOST = "memory.offload_activations=true"
IN_BACKWARD = (*CHECKPOINTED, "dtype=bfloat16", "memory.optimizer_in_backward=true")
MEDIUM = ("network=medium", "network.init=default")  # as orthogonal it takes seconds
TEXTS = (  # of more steps than a dry run takes
    *("env=text", "env.pretrain_steps=0", "network=gpt_tiny"),
    *("num_envs=8", "num_steps=40", "num_epochs=2", "num_minibatches=2"),
)
TEXTS_ALL = (
    *(*TEXTS, "dtype=bfloat16", "network.positions=rotary", "memory.checkpoint_activations=true"),
    *("memory.num_micro_batches=2", "memory.rollout_place=host"),
)
MASKED = ("env=cartpole_masked", "network=lstm", *ROLLOUT)
# python -m benchmarks.forecast goes through all of them; here each strategy meets each kind once.
CASES = [
    *[(strategy, (*ROLLOUT, *ALL)) for strategy in STRATEGIES],
    *[(strategy, TEXTS) for strategy in STRATEGIES],
    *[("parked", TEXTS_ALL), ("critic_free", TEXTS_ALL)],
    *[(strategy, (*ROLLOUT, *ALL, HALF)) for strategy in ("co_resident", "shared_trunk")],
    *[(strategy, (*ROLLOUT, *IN_BACKWARD)) for strategy in ("co_resident", "parked")],
    *[("shared_trunk", (*ROLLOUT, *MEDIUM, "memory.optimizer_in_backward=true"))],
    *[
        (strategy, (*ROLLOUT, *ALL, SAVED_ON_HOST))
        for strategy in ("parked", "offloaded_optimizer")
    ],
    *[
        ("critic_free", (*TEXTS, SAVED_ON_HOST)),
        ("co_resident", (*MASKED, SAVED_ON_HOST, *IN_BACKWARD[2:])),
    ],
    *[("critic_free", (*ROLLOUT, DEEP, HALF)), ("co_resident", (*ROLLOUT, *MEDIUM, HALF))],
    *[("co_resident", MASKED), ("shared_trunk", (*MASKED, "network=gru"))],
    *[("parked", (*MASKED, "network=gru", "memory.rollout_place=host"))],
    *[("co_resident", (*ROLLOUT, "dtype=bfloat16")), ("co_resident", (*ROLLOUT, *IN_PARTS))],
    *[("offloaded_optimizer", (*ROLLOUT, *CHECKPOINTED))],
    *[("parked", (*ROLLOUT, *IN_PARTS)), ("parked", (*ROLLOUT, *MEDIUM))],
    *[("shared_trunk", (*ROLLOUT, *ON_HOST)), ("shared_trunk", (*ROLLOUT, *CHECKPOINTED))],
]


def assert_equal(settings):
    """Count a real first iteration, and compare every phase, category, network and byte moved."""
    dry = dry_run(settings)
    trainer = counted_trainer([settings])
    startup = dataclasses.replace(trainer.placement.traffic)
    trainer.iterate()
    assert dry.phase_peaks == ledger_of(trainer).phase_peaks
    assert dry.host_peak == ledger_of(trainer).host_peak
    assert dry.bus.startup == startup
    moved = trainer.placement.traffic.since(startup)
    if settings.whole_episodes and settings.memory.rollout_place is Place.host:
        # A run stops collecting when all episodes have ended; a forecast does not know when.
        assert moved.d2h_bytes <= dry.bus.iteration.d2h_bytes
        assert moved.h2d_bytes == dry.bus.iteration.h2d_bytes
    else:
        assert moved == dry.bus.iteration
    return dry


@pytest.mark.parametrize(("strategy", "options"), CASES)
def test_a_forecast_equals_a_counted_run_in_every_phase_category_and_network(strategy, options):
    assert_equal(config(f"memory={strategy}", *options))


@pytest.mark.parametrize(
    "task",
    [
        ("env=pendulum", "target_kl=0.01", "value_epsilon=0.2"),  # continuous, with every branch
        ("env=acrobot", "env.normalize_observations=true", "env.normalize_rewards=true"),
        ("env=gymnasium", "env.id=Pendulum-v1", "dtype=float64"),  # on the host; no episode ends
        ("num_minibatches=1", "num_epochs=1"),  # a single gradient step
        ("num_steps=1", "num_envs=160", "separate_grad_clip=true"),
        ("num_steps=80", "num_envs=2"),  # more steps than the dry run takes
    ],
    ids=lambda task: task[0],
)
def test_other_environments_and_shapes_are_forecast_as_well(task):
    assert_equal(config(*ROLLOUT, *task))


def test_fake_tensors_leave_nothing_behind():
    before = torch.get_num_threads()
    dry_run(config(*ROLLOUT, "num_threads=1"))
    assert torch.get_num_threads() == before
    assert type(torch.zeros(1)) is torch.Tensor


def test_seeds_and_rates_share_one_forecast_and_sizes_do_not(monkeypatch):
    made = []
    monkeypatch.setattr(forecasting, "_forecasts", {})
    monkeypatch.setattr(
        forecasting, "dry_run", lambda settings: made.append(settings) or dry_run(settings)
    )
    base = config(*ROLLOUT)
    first = forecast(base)
    for change in ({"seed": 7}, {"lr": 1.0}, {"vram_budget_gib": 1.0}, {"name": "b"}):
        assert forecast(dataclasses.replace(base, **change)) is first
    assert len(made) == 1
    assert forecast(dataclasses.replace(base, num_epochs=3)) is not first
    assert forecast(dataclasses.replace(base, target_kl=0.1)) is not first  # one branch more
    assert len(made) == 3


def test_what_cuda_takes_stands_beside_the_tensors(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    needed = forecast(config(*ROLLOUT))
    assert needed.allocated == needed.peak.total + needed.workspace.num_bytes
    assert needed.total == needed.allocated + needed.context.num_bytes
    assert needed.context.source
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:2:16:8")  # KiB, for each of two threads
    assert cublas_workspace().num_bytes == 2 * (2 * 4096 + 8 * 16) * 1024


BILLIONS = """
import sys
from pathlib import Path
from ppo_lab.config.compose import check_jobs, register
from ppo_lab.forecasting.forecast import forecast
register()
words = ["network.hidden=[" + ",".join(["16384"] * 8) + "]", "tracking=local", "device=cpu"]
words.append("forecast=true")  # else refused where so much memory is not there
words.append("memory=" + ",".join(sys.argv[1:]))
for job in check_jobs(words, is_multirun=True, config_dir=None, config_name=None):
    needed = forecast(job.config)
    print(sum(needed.num_parameters.values()), needed.peak.total)
status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with the parent's
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_pair_of_3_8_billion_parameters_is_forecast_in_1_gib_of_host_memory(tmp_path):
    """Two networks of 8 layers of 16384: 7 * 16384^2 = 1.879 billion weights each."""
    done = ppo_lab(tmp_path, "co_resident", "offloaded_optimizer", program=BILLIONS)
    assert done.returncode == 0, done.stderr
    *forecasts, rss_mib = done.stdout.splitlines()
    for line, bytes_each in zip(forecasts, (16, 8), strict=True):
        parameters, peak = map(int, line.split())
        assert 3.75e9 < parameters < 3.85e9
        assert peak > bytes_each * parameters
    assert int(rss_mib) < 1024


def test_wide_rollouts_of_texts_are_forecast_from_few_passes():
    """12,300 rows, at most 4096 in a pass: three of 4090, and one of 30."""
    options = ("num_envs=1230", "num_steps=10", "num_minibatches=10", "num_epochs=1")
    assert_equal(config("memory=parked", *TEXTS, *options))


def test_texts_cost_a_cache_logits_and_a_reference_in_the_phases_that_use_them():
    """Of 8 texts of 40 tokens, 2 blocks cache keys and values of 64 numbers each."""
    peaks = dry_run(config("memory=parked", *TEXTS)).phase_peaks
    assert peaks["rollout"].by_key[MemoryKey(Category.cache, "actor")] == 4 * 2 * 2 * 8 * 40 * 64
    of_reference = MemoryKey(Category.weights, "reference")
    here = {name for name, peak in peaks.items() if peak.size_of(of_reference)}
    assert here == {"evaluation"}  # parked, it is copied to the device when it is used
    assert peaks["update"].size_of(Category.cache) == 0


def test_a_peak_names_its_networks():
    by_key = dry_run(config(*ROLLOUT, "network=medium")).peak.by_key
    for category in (Category.weights, Category.gradients, Category.optimizer):
        assert by_key[MemoryKey(category, "actor")] > by_key[MemoryKey(category, "critic")] > 0
    trunk = dry_run(config(*ROLLOUT, "network=medium", "memory=shared_trunk")).peak.by_key
    assert trunk[MemoryKey(Category.weights, "trunk")] > trunk[MemoryKey(Category.weights, "actor")]
