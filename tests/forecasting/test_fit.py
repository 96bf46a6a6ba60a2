"""The largest run that fits a budget: the search, what it varies, and a real one to the byte."""

import dataclasses
import random

import pytest

from ppo_lab.config.choices import FitOver
from ppo_lab.devices.placement import Traffic
from ppo_lab.forecasting import budget as budgeting
from ppo_lab.forecasting import fit as fitting
from ppo_lab.forecasting import forecast as forecasting
from ppo_lab.forecasting.categories import Category, HostBytes, MemoryKey, Peak
from ppo_lab.forecasting.counting import counted_trainer, ledger_of
from ppo_lab.forecasting.dry_run import BusBytes
from ppo_lab.forecasting.fit import fit
from ppo_lab.forecasting.forecast import Forecast, Overhead, forecast
from ppo_lab.utils.errors import ConfigError
from tests.helpers.trainers import config

GIB = 1024**3
MIB = 1024**2
SHARES = {"co_resident": 4, "offloaded_optimizer": 2, "parked": 2, "shared_trunk": 1}


def fake_forecast(settings):
    """Return the larger of two phases, each linear in the sizes that it depends on."""
    parameters = settings.network.num_trunk_parameters(settings.env.check())
    rows = settings.num_rows // settings.num_minibatches // settings.memory.num_micro_batches
    state = 8 * SHARES.get(settings.memory.name, 1) * parameters
    total = max(state + 5000 * rows, 500 * settings.num_rows)
    peak = Peak(total, "update", "backward", {MemoryKey(Category.activations): 5000 * rows})
    moved = BusBytes(*(Traffic() for _ in range(3)))
    none = Overhead("none", 0, "none")
    return Forecast({"update": peak}, HostBytes(0, 0), moved, {}, none, none)


@pytest.fixture
def faked(monkeypatch):
    for module in (budgeting, forecasting, fitting):
        monkeypatch.setattr(module, "forecast", fake_forecast)


def asked(*overrides, over="num_envs", budget=1.0):
    settings = config("network=tiny", *overrides)
    return dataclasses.replace(settings, fit=True, fit_over=FitOver[over], vram_budget_gib=budget)


def test_the_search_finds_the_last_index_of_random_kinked_curves_in_few_calls():
    drawn = random.Random(1)
    for _ in range(300):
        count = drawn.choice([1, 2, 3, 7, 1025, 10**6])
        lines = [(drawn.uniform(0.1, 10), drawn.randrange(-(10**6), 10**3)) for _ in range(3)]
        calls = []

        def excess(index, lines=lines, calls=calls):
            calls.append(index)
            return max(int(slope * index) + start for slope, start in lines)

        found = fitting._last_that_fits(excess, count)
        assert len(calls) < 30
        assert found == -1 or excess(found) <= 0
        assert found == count - 1 or excess(found + 1) > 0


def test_the_search_takes_four_calls_on_a_line():
    calls = []
    found = fitting._last_that_fits(lambda index: calls.append(index) or 3 * index - 10_000, 10**6)
    assert (found, len(calls)) == (3333, 4)


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize(
    ("overrides", "step"),
    [
        ((), 1),
        (("num_steps=6", "num_envs=2", "num_minibatches=4"), 2),  # 4 divides 6 n for even n
        (("num_minibatches=4", "memory.num_micro_batches=32", "num_steps=32"), 4),
        (("env=cartpole_masked", "network=lstm", "num_minibatches=4"), 4),  # whole sequences
        (("memory=critic_free", "num_minibatches=1"), 8),  # whole groups
    ],
    ids=str,
)
def test_environments_grow_by_what_the_other_keys_allow_and_one_step_more_never_fits(
    overrides, step
):
    drawn = random.Random(2)
    for _ in range(5):
        settings = asked(*overrides, budget=drawn.uniform(0.1, 2.0))
        found = fit(settings).config
        assert found.num_envs % step == 0
        assert forecast_of(found) <= settings.vram_budget_gib * GIB
        assert forecast_of(more(found, step)) > settings.vram_budget_gib * GIB


def forecast_of(settings):
    return fake_forecast(settings).total


def more(settings, step):
    changed = {"num_envs": settings.num_envs + step, "total_steps": 10**12}
    return dataclasses.replace(settings, **changed)


@pytest.mark.usefixtures("faked")
def test_the_fewest_minibatches_of_those_that_divide_the_rollout():
    settings = asked("num_envs=60", "num_steps=10", "num_minibatches=60", over="num_minibatches")
    within = dataclasses.replace(settings, vram_budget_gib=2 * MIB / GIB)
    assert fit(within).changes == {"num_minibatches": "2"}  # 300 rows: 1.5 MB, and not 600
    assert fit(settings).changes == {"num_minibatches": "1"}
    assert "nothing larger" in str(fit(settings))


@pytest.mark.usefixtures("faked")
def test_the_largest_network_of_the_same_kind():
    found = fit(asked(over="network", budget=3.0))
    assert found.changes == {"network": "large"}  # 50 M parameters x 32 B; huge has 740 M
    typed = ("network=tiny", "network.hidden=[64,64]", "fit=true", "fit_over=network", "seed=3")
    assert found.overrides(typed, asked()) == ("seed=3", "network=large")


@pytest.mark.usefixtures("faked")
def test_the_cheapest_memory_is_the_one_asked_for_where_it_fits():
    assert fit(asked(over="memory")).changes == {"memory": "co_resident"}
    found = fit(asked("network=huge", over="memory", budget=12.0))
    assert found.changes == {"memory": "offloaded_optimizer"}  # parked would clip otherwise
    assert found.config.memory.name == "offloaded_optimizer"
    assert "needs 22" in str(found)


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize("over", [over.value for over in FitOver])
def test_where_nothing_fits_or_there_is_no_budget_it_is_refused(over):
    with pytest.raises(ConfigError, match=f"fit_over={over}: nothing fits 0.00 MiB: .* needs "):
        fit(asked(over=over, budget=1e-9))
    for budget, name in ((None, "none"), ("auto", "auto")):
        with pytest.raises(ConfigError, match=f"^vram_budget_gib={name}: fit=true needs a budget"):
            fit(asked(over=over, budget=budget))


def test_two_real_fits_are_exact_to_one_environment_by_the_ledger_of_counted_runs():
    small = ("num_steps=16", "num_epochs=1", "num_minibatches=1", "total_steps=16_000")
    settings = asked(*small, "num_envs=20")
    beside = forecast(settings).total - forecast(settings).peak.total  # CUDA's own
    drawn = random.Random(3)
    for _ in range(2):
        budget = forecast(settings).total + drawn.randrange(MIB)
        num_envs = fit(dataclasses.replace(settings, vram_budget_gib=budget / GIB)).config.num_envs
        assert num_envs >= 20
        assert counted(settings, num_envs) <= budget - beside < counted(settings, num_envs + 1)


def counted(settings, num_envs):
    """Return the peak of a run's first iteration."""
    run = dataclasses.replace(settings, num_envs=num_envs, fit=False, device="cpu")
    trainer = counted_trainer([run])
    trainer.iterate()
    trainer.close()
    return ledger_of(trainer).peak.total
