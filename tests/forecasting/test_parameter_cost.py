"""Bytes worked out by hand, of parameters by strategy and of layers, against the dry run's."""

import pytest

from ppo_lab.forecasting.categories import Category
from ppo_lab.forecasting.dry_run import dry_run
from ppo_lab.memory import STRATEGIES
from tests.helpers.trainers import config

OF_PARAMETERS = (Category.weights, Category.gradients, Category.optimizer)
# Two micro-batches: the first one's gradients all exist when the peak comes in the second.
LARGE = ("network=large", "memory.num_micro_batches=2", "num_epochs=1", "num_minibatches=2")
# 4 -> 4096 x 4 and a head: 4096 * (5 + 3 * 4097) each, heads of 2 and of 1.
TRUNK, ACTOR_HEAD, CRITIC_HEAD = 4096 * (5 + 3 * 4097), 4097 * 2, 4097
BOTH = 2 * TRUNK + ACTOR_HEAD + CRITIC_HEAD
# Bytes by hand, float32. parked is largest while it trains the actor, which has the larger head.
DEVICE = {
    "co_resident": 16 * BOTH,
    "offloaded_optimizer": 8 * BOTH,
    "parked": 4 * BOTH + 12 * (TRUNK + ACTOR_HEAD),
    "shared_trunk": 16 * (TRUNK + ACTOR_HEAD + CRITIC_HEAD),
    "critic_free": 16 * (TRUNK + ACTOR_HEAD),
}
HOST = dict.fromkeys(STRATEGIES, 0) | {"offloaded_optimizer": 16 * BOTH, "parked": 8 * BOTH}
BUS_PER_STEP = dict.fromkeys(STRATEGIES, 0) | {"offloaded_optimizer": 8 * BOTH}
BUS_PER_ITERATION = dict.fromkeys(STRATEGIES, 0) | {"parked": 16 * BOTH}


def counted(strategy, *options):
    """Return the dry run's bytes of parameters on the device, on the host, and over the bus."""
    chosen = config(f"memory={strategy}", *LARGE, *options)
    dry = dry_run(chosen)
    peak = dry.phase_peaks["update"].by_category()
    step, iteration = dry.bus.gradient_step, dry.bus.iteration
    per_step = step.h2d_bytes + step.d2h_bytes
    steps = chosen.num_epochs * chosen.num_minibatches * per_step
    moved = iteration.h2d_bytes + iteration.d2h_bytes - steps
    host = dry.host_peak.total
    return sum(peak[c] for c in OF_PARAMETERS), host, per_step, moved, dry.num_parameters


def said(strategy, num_parameters, element_size):
    """Return the same by the strategy's own numbers."""
    cost, count = STRATEGIES[strategy]().cost, sum(num_parameters.values())
    in_training = num_parameters["actor"]  # the larger one; shared, nothing is in training alone
    sizes = (
        cost.device * count + cost.device_in_training * in_training,
        cost.host * count,
        cost.bus_per_step * count,
        cost.bus_per_iteration * count,
    )
    return [element_size * size for size in sizes]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_parameter_costs_what_was_worked_out_by_hand(strategy):
    chosen = config(f"memory={strategy}", *LARGE)
    *sizes, num_parameters = counted(strategy)
    expected = [t[strategy] for t in (DEVICE, HOST, BUS_PER_STEP, BUS_PER_ITERATION)]
    # Beside them: blocks of 512 B, buckets rounded up, step counts, and a record of 17 B a row.
    assert sizes == pytest.approx(expected, rel=1e-3, abs=80 * 1024)
    assert said(strategy, num_parameters, chosen.weights_dtype.itemsize) == expected


def test_an_offloaded_share_costs_half_on_the_device_and_8_bytes_a_step():
    """Half of two networks: three of the six matrices of 4096 x 4096, then what is small."""
    *sizes, _ = counted("co_resident", "memory.offload_fraction=0.5")
    half = 3 * 4096**2
    assert half / BOTH == pytest.approx(0.5, abs=1e-3)
    expected = [16 * BOTH - 8 * half, 16 * half, 8 * half, 0]
    assert sizes == pytest.approx(expected, rel=1e-3, abs=80 * 1024)
    cost = config("memory.offload_fraction=0.5").memory.cost
    said = "12 B on the device, 8 B on the host, 4 B over PCIe per gradient step"
    assert cost.describe(4) == said


@pytest.mark.parametrize("strategy", ["co_resident", "parked"])
def test_stepping_in_the_backward_pass_leaves_the_gradient_of_one_matrix(strategy):
    option = ("memory.num_micro_batches=1", "memory.optimizer_in_backward=true")
    size, host, per_step, _, num_parameters = counted(strategy, *option)
    gradients = {"co_resident": BOTH, "parked": TRUNK + ACTOR_HEAD}[strategy]
    expected = DEVICE[strategy] - 4 * gradients
    assert size == pytest.approx(expected + 4 * 4096**2, rel=1e-3)
    assert (host, per_step) == (pytest.approx(HOST[strategy], rel=1e-3), 0)
    cost = config(f"memory={strategy}", option[1]).memory.cost
    in_training = cost.device_in_training * num_parameters["actor"]
    assert 4 * (cost.device * BOTH + in_training) == expected


@pytest.mark.parametrize(
    ("strategy", "dtype", "element_size"),
    [*((name, "bfloat16", 4) for name in STRATEGIES), ("offloaded_optimizer", "float64", 8)],
)
def test_a_strategys_numbers_are_those_of_the_dry_run_in_every_type(strategy, dtype, element_size):
    """Under autocast weights, gradients and moments stay float32."""
    *sizes, num_parameters = counted(strategy, f"dtype={dtype}")
    expected = said(strategy, num_parameters, element_size)
    assert sizes == pytest.approx(expected, rel=1e-3, abs=80 * 1024)


def test_the_cost_is_said_in_words_and_in_bytes_of_the_weights_type():
    words = {name: strategy().cost.describe(4) for name, strategy in STRATEGIES.items()}
    assert words == {
        "co_resident": "16 B on the device",
        "offloaded_optimizer": "8 B on the device, 16 B on the host, 8 B over PCIe per gradient"
        " step",
        "parked": "4 B on the device, 12 B more on the device while its network is trained,"
        " 8 B on the host, 16 B over PCIe per iteration",
        "shared_trunk": "16 B on the device",
        "critic_free": "16 B on the device",
    }
    assert STRATEGIES["co_resident"]().cost.describe(8) == "32 B on the device"


def activations(*overrides):
    return dry_run(config(*overrides)).phase_peaks["update"].by_category()[Category.activations]


def test_activations_of_a_deep_network_follow_its_layers():
    """8192 rows, 3 x 1024, float32; what a loss keeps for a row is left out.

    When the critic's backward pass begins there are three outputs of each network, the gradient of
    the last one and of what went into it.
    """
    found = activations("network=medium", "num_steps=1024", "num_epochs=1", "num_minibatches=1")
    assert found == pytest.approx(4 * 8192 * (3 + 3 + 2) * 1024, rel=0.005)


def test_a_checkpointed_network_keeps_the_ends_of_segments_and_the_last_one_whole():
    """12 layers in segments of 4: the actor keeps the outputs of 4 and 8, and layers 9 to 12.

    Most is held as the critic's layers 1 to 4 are computed again: four more outputs, and the
    gradient of the last one and of what went into it.
    """
    rows = 128 * 128
    overrides = ("network=huge", "num_envs=128", "num_epochs=1", "num_minibatches=1")
    found = activations(*overrides, "memory.checkpoint_activations=true")
    assert found == pytest.approx(4 * rows * 8192 * (6 + 4 + 2), rel=0.005)


def test_micro_batches_divide_activations_and_nothing_else():
    whole, parts = (
        dry_run(
            config(
                *("network=large", "num_envs=256", "num_epochs=1", "num_minibatches=4"),
                f"memory.num_micro_batches={n}",
            )
        ).peak.by_category()
        for n in (1, 4)
    )
    assert parts[Category.activations] < whole[Category.activations]
    assert parts[Category.rollout] == whole[Category.rollout]
