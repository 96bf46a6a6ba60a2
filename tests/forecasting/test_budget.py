"""Whether a run fits, what would make it fit, and what memory=auto stands for."""

import dataclasses

import pytest

from ppo_lab.devices.placement import Place, Traffic
from ppo_lab.forecasting import budget as budgeting
from ppo_lab.forecasting import forecast as forecasting
from ppo_lab.forecasting.budget import advice, budget_bytes, over_budget, resolve_memory
from ppo_lab.forecasting.categories import Category, HostBytes, MemoryKey, Peak
from ppo_lab.forecasting.dry_run import BusBytes
from ppo_lab.forecasting.forecast import Forecast, Overhead
from ppo_lab.memory import AutoMemory
from tests.helpers.trainers import config

GIB = 1024**3
# GiB on the device and MiB over the bus: what the fake forecast below says of each strategy.
NEEDS = {"co_resident": (30, 0), "offloaded_optimizer": (19, 500), "parked": (18, 100)}
NEEDS |= {"shared_trunk": (15, 0), "critic_free": (14, 0)}


def fake_forecast(settings):
    """Return round numbers: half of the memory is activations, all halved by each option."""
    gib, mib = NEEDS[settings.memory.name]
    total = gib * GIB
    activations = total // 2
    if settings.dtype.value == "bfloat16":
        total -= activations // 2
    total -= activations - activations // settings.memory.num_micro_batches
    total -= GIB * settings.memory.optimizer_in_backward + 2 * GIB * (
        settings.memory.offload_fraction == 0.5
    )
    if settings.memory.offload_activations:
        total -= activations // 4
    if settings.network == config("network=large").network:
        total = total // 10
    shares = {
        MemoryKey(Category.activations): activations,
        MemoryKey(Category.weights): activations,
    }
    shares |= {MemoryKey(Category.gradients): 4 * GIB}
    peak = Peak(total, "update", "backward", shares)
    bus = BusBytes(Traffic(), Traffic(), Traffic(h2d_bytes=mib * 1024**2))
    none = Overhead("none", 0, "none")
    return Forecast({"update": peak}, HostBytes(0, 0), bus, {}, none, none)


def use(monkeypatch, forecast):
    for module in (budgeting, forecasting):
        monkeypatch.setattr(module, "forecast", forecast)


@pytest.fixture(autouse=True)
def forecasts(monkeypatch):
    use(monkeypatch, fake_forecast)


def wanted(*overrides, budget=20):
    settings = config("network=huge", *overrides)
    return dataclasses.replace(settings, vram_budget_gib=budget)


def overrides_of(settings):
    return {change.overrides: change.total / GIB for change in advice(settings)}


def test_on_a_cpu_there_is_no_budget_unless_one_is_given():
    assert budget_bytes(wanted(budget="auto")) is None
    assert budget_bytes(wanted(budget=None)) is None
    assert budget_bytes(wanted(budget=1.5)) == 3 * GIB // 2
    assert over_budget(wanted(budget="auto")) is None
    assert over_budget(wanted(budget=None)) is None


def test_without_a_budget_nothing_is_forecast(monkeypatch):
    use(monkeypatch, lambda settings: pytest.fail("was forecast"))
    assert over_budget(wanted(budget="auto")) is None
    assert resolve_memory(wanted("memory=auto", budget="auto")).memory.name == "co_resident"


def test_a_run_over_budget_is_told_what_it_needs_and_what_would_fit():
    first, second, *changes, last = over_budget(wanted()).message().splitlines()
    assert first == "ppo_lab: needs 30.00 GiB by forecast, vram_budget_gib is 20.00"
    assert second == "would fit, most saved first:"
    assert changes[:4] == [
        "  network=large: 3.00 GiB (another network)",
        "  memory=critic_free: 14.00 GiB (another objective)",
        "  memory=shared_trunk: 15.00 GiB (another model)",
        "  memory.num_micro_batches=8: 16.88 GiB",
    ]
    assert last.startswith("vram_budget_gib=none")
    assert over_budget(wanted(budget=31)) is None


def test_advice_is_ranked_by_what_it_saves_and_says_what_it_alters():
    changes = advice(wanted())
    totals = [change.total for change in changes]
    assert totals == sorted(totals)
    by_override = {change.overrides: change for change in changes}
    assert by_override["memory=shared_trunk",].alters == "another model"
    assert by_override["memory=parked",].alters == "actor and critic are clipped separately"
    offloaded = by_override["memory=offloaded_optimizer",]
    assert offloaded.alters == ""
    assert offloaded.price == "+0.5 GiB PCIe"  # 500 MiB in each iteration
    assert by_override["dtype=bfloat16",].total == 22.5 * GIB  # half of 15 GiB of activations less
    # 15 GiB + 15 / 8: less than the 18 GiB of parked
    assert by_override["memory.num_micro_batches=8",].total == 16.875 * GIB


def test_advice_has_the_options_that_change_where_adam_steps_and_activations_stay():
    by_override = {change.overrides: change for change in advice(wanted())}
    in_backward = by_override["memory.optimizer_in_backward=true",]
    assert (in_backward.total, in_backward.price) == (29 * GIB, "a second backward pass")
    assert by_override["memory.offload_fraction=0.5",].total == 28 * GIB
    assert by_override["memory.offload_activations=true",].total == 26.25 * GIB
    one_pass = {change.overrides: change.price for change in advice(wanted("max_grad_norm=none"))}
    assert one_pass["memory.optimizer_in_backward=true",] == ""
    offloaded = overrides_of(wanted("memory=offloaded_optimizer"))
    assert ("memory.optimizer_in_backward=true",) not in offloaded  # refused
    assert ("memory.offload_fraction=0.5",) not in offloaded  # it is 1
    assert offloaded["memory=parked",] == 18  # with its own defaults


@pytest.mark.parametrize(
    ("overrides", "smaller"),
    [
        (("network=huge",), "large"),
        (("network=medium", "network.hidden=[64]"), None),
        (("env=cartpole_masked", "network=lstm"), "gru"),  # three quarters of its parameters
        (("env=cartpole_masked", "network=gru"), None),
        (("env=text", "network=gpt_medium"), "gpt_small"),
        (("env=text", "network=gpt_small", "network.positions=learned"), "gpt_tiny"),
        (("env=text", "network=gpt_tiny"), None),
    ],
    ids=str,
)
def test_the_smaller_network_is_the_next_of_the_same_kind(overrides, smaller):
    found = budgeting._smaller_network(config(*overrides))
    if smaller is None:
        assert found is None
        return
    name, network = found
    assert name == smaller
    assert network == config(*overrides[:1], f"network={name}").network


def test_a_smaller_network_that_cannot_read_so_many_steps_is_not_proposed():
    settings = config("env=text", "network=gpt_small", "num_steps=100")  # gpt_tiny reads 64
    assert not any("network=gpt_tiny" in change.overrides for change in advice(settings))


def test_separate_clipping_makes_parked_the_same_arithmetic():
    changes = {c.overrides: c.alters for c in advice(wanted("separate_grad_clip=true"))}
    assert changes["memory=parked",] == ""
    # One trunk has one gradient: shared_trunk is refused with separate clipping, so not proposed.
    assert ("memory=shared_trunk",) not in changes


def test_another_strategy_than_parked_clips_both_networks_together_again(monkeypatch):
    monkeypatch.setitem(NEEDS, "parked", (30, 100))
    changes = {c.overrides: c.alters for c in advice(wanted("memory=parked"))}
    assert changes["memory=offloaded_optimizer",] == "actor and critic are clipped together"


def test_pairs_are_tried_only_where_no_single_change_fits(monkeypatch):
    monkeypatch.setattr(budgeting, "_smaller_network", lambda settings: None)
    assert all(len(overrides) == 1 for overrides in overrides_of(wanted(budget=16)))
    pairs = {k: v for k, v in overrides_of(wanted(budget=10)).items() if len(k) == 2}
    # shared_trunk 15 GiB, its 7.5 of activations in eight parts: 7.5 + 7.5 / 8
    assert pairs["memory=shared_trunk", "memory.num_micro_batches=8"] == 7.5 + 7.5 / 8
    for one, other in pairs:
        assert one.partition("=")[0] != other.partition("=")[0]


def test_the_line_of_a_summary_prefers_a_change_that_alters_nothing():
    line = str(over_budget(wanted()))
    assert "\n" not in line
    assert "fits with memory.num_micro_batches=8: 16.88 GiB" in line


@pytest.mark.parametrize(
    ("overrides", "budget", "strategy"),
    [
        ((), 31, "co_resident"),  # fits: nothing moves
        ((), 20, "offloaded_optimizer"),  # parked would clip otherwise
        (("separate_grad_clip=true",), 20, "parked"),  # 100 MiB over the bus, not 500
        (("max_grad_norm=none",), 20, "parked"),  # nothing is clipped
        (("max_grad_norm=none",), 1, "parked"),  # nothing fits: the least
    ],
)
def test_auto_is_the_strategy_of_the_same_arithmetic_that_fits_and_moves_least(
    overrides, budget, strategy
):
    settings = wanted("memory=auto", "memory.rollout_place=host", *overrides, budget=budget)
    assert isinstance(settings.memory, AutoMemory)
    resolved = resolve_memory(settings)
    assert resolved.memory.name == strategy
    assert resolved.memory.rollout_place is Place.host  # the options stay


def test_a_chosen_strategy_stays_chosen():
    settings = wanted("memory=shared_trunk", budget=1)
    assert resolve_memory(settings) is settings


def test_what_cannot_be_forecast_runs_and_says_so(monkeypatch, caplog):
    def fails(settings):
        raise RuntimeError("asks a tensor for its value")

    use(monkeypatch, fails)
    assert over_budget(wanted()) is None
    assert "cannot be forecast" in caplog.text
    assert "asks a tensor for its value" in caplog.text
