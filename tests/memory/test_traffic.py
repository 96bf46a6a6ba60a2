"""Bytes over the bus in one iteration of every memory strategy, by its formula and by hand."""

import dataclasses

import pytest

from ppo_lab.devices.placement import Place, Traffic
from ppo_lab.memory import STRATEGIES
from ppo_lab.ppo.rollout import lane_rows
from tests.memory.test_options import OPTIONS, trainer_of


def traffic_of(trainer, *, iterate):
    before = dataclasses.replace(trainer.placement.traffic)
    iterate()
    return trainer.placement.traffic.since(before)


WORK = {
    "plain": (),
    **OPTIONS,
    "all three, continuous": ("env=pendulum", *OPTIONS["all three"]),
    "all three, in float64": ("dtype=float64", *OPTIONS["all three"]),
    "all three, stopped": ("target_kl=0.001", "lr=0.01", *OPTIONS["all three"]),
}


def iteration_traffic(trainer):
    """Return the bytes of one iteration but the record's, and the steps that were collected.

    The native environment moves none; whole episodes are collected until the last has ended.
    """
    num_steps = 0

    def iterate():
        nonlocal num_steps
        rollout = trainer.collect()
        live = rollout.live
        num_steps = len(rollout.rewards) if live is None else int(live.sum(0).max())
        rows = lane_rows(rollout, trainer.advantages(rollout))
        trainer.diagnose(rollout, rows, trainer.update(rows))

    return traffic_of(trainer, iterate=iterate), num_steps


def expected_traffic(trainer, num_collected):
    """Return the same by the strategy's cost and the rollout's size."""
    run, cost = trainer.config, trainer.config.memory.cost
    element_size = run.weights_dtype.itemsize
    num_steps = run.num_epochs * run.num_minibatches
    num_parameters = sum(p.numel() for p in trainer.model.parameters())
    numbers = (num_steps * cost.bus_per_step + cost.bus_per_iteration) * num_parameters
    h2d_bytes = d2h_bytes = numbers * element_size // 2
    if run.memory.name == "offloaded_optimizer":  # lr, on/off switch and clip coefficients
        d2h_bytes += num_steps * (2 + (2 if run.clips_separately else 1)) * element_size
    if run.memory.rollout_place is Place.host:
        # Observations and last observations go down as they are collected; both come up for their
        # values, if there is a critic, the former again after the update, and every epoch's rows in
        # its own order.
        num_rows = run.num_rows * len(trainer.configs)
        observations = num_rows * trainer.spec.observation_size * element_size
        num_epochs = run.num_epochs * (2 if run.memory.name == "parked" else 1)
        h2d_bytes += ((3 if run.memory.has_critic else 1) + num_epochs) * observations
        d2h_bytes += 2 * observations * num_collected // run.rollout_steps
        d2h_bytes += num_epochs * 8 * num_rows
    return Traffic(h2d_bytes, d2h_bytes)


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_iteration_moves_exactly_the_bytes_its_strategy_says(strategy, work):
    trainer = trainer_of(strategy, *WORK[work])
    for _ in range(2):
        moved, num_collected = iteration_traffic(trainer)
        assert moved == expected_traffic(trainer, num_collected)


def test_the_bytes_of_an_iteration_worked_out_by_hand():
    # Five layers of 16 on 4 numbers: 5 * 16 + 4 * 17 * 16 = 1168 a trunk; heads of 34 and 17.
    # 2387 parameters of 4 bytes; 256 rows of 4 numbers; 5 epochs of 4 minibatches.
    expected = {
        ("co_resident", False): Traffic(0, 0),
        ("shared_trunk", False): Traffic(0, 0),
        ("critic_free", False): Traffic(0, 0),
        # 20 steps: weights up; gradients, lr, switch and one clip coefficient down.
        ("offloaded_optimizer", False): Traffic(20 * 9548, 20 * (9548 + 12)),
        ("parked", False): Traffic(2 * 9548, 2 * 9548),
        # Rows are 256 * 4 * 4 = 4096 bytes: up for 3 passes and 5 epochs, down twice; 5 orders of
        # 256 * 8 = 2048 bytes down.
        ("co_resident", True): Traffic(8 * 4096, 2 * 4096 + 5 * 2048),
        ("shared_trunk", True): Traffic(8 * 4096, 2 * 4096 + 5 * 2048),
        ("offloaded_optimizer", True): Traffic(
            20 * 9548 + 8 * 4096, 20 * 9560 + 2 * 4096 + 5 * 2048
        ),
        ("parked", True): Traffic(2 * 9548 + 13 * 4096, 2 * 9548 + 2 * 4096 + 10 * 2048),
    }
    assert {name for name, _ in expected} == set(STRATEGIES)
    # Building copies every parameter down once, and the lane's seed up.
    assert trainer_of("offloaded_optimizer").placement.traffic == Traffic(8, 9548)
    for (name, on_host), traffic in expected.items():
        options = ("memory.rollout_place=host",) if on_host else ()
        assert iteration_traffic(trainer_of(name, *options))[0] == traffic
