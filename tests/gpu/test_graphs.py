"""CUDA graphs on a CUDA device: equal to eager, and launched without waiting for anything."""

import dataclasses

import pytest
import torch

from ppo_lab.compiler.compilation import Compilation
from ppo_lab.ppo.collector import Collector
from ppo_lab.ppo.rollout import lane_rows
from ppo_lab.training.trainer import Trainer
from tests.helpers.compiled import (
    KINDS,
    SMALL,
    check_agreement,
    check_replacement,
    pair_of,
    weights_of,
)
from tests.helpers.trainers import config, lanes_of, largest_difference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


def pair(*overrides):
    return pair_of("device=cuda", *overrides)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_and_twenty_gradient_steps_on_it_agree_with_graphs(kind):
    check_agreement(*pair(*KINDS[kind]))


def test_bfloat16_agrees_with_graphs():
    graphed, plain = pair("dtype=bfloat16")
    rollout = plain.collect()
    rows = lane_rows(rollout, plain.advantages(rollout))
    for trainer in (graphed, plain):
        trainer.update(rows)
    # The same kernels in the same order; bfloat16 would show any other as 1e-3.
    assert largest_difference(weights_of(graphed), weights_of(plain)) < 1e-5


def test_free_runs_agree_over_a_few_iterations():
    graphed, plain = pair()
    for _ in range(3):
        for trainer in (graphed, plain):
            trainer.iterate()
    assert largest_difference(weights_of(graphed), weights_of(plain)) < 1e-5


@pytest.mark.parametrize("kind", ["cartpole", "shared trunk", "normalised"])
def test_a_lane_that_is_replaced_is_trained_as_a_fresh_run_with_graphs(kind):
    graphed, plain = pair(*KINDS[kind])
    check_replacement(graphed, plain)


def test_capturing_changes_no_state():
    trainer = Trainer(lanes_of(config(*SMALL, "device=cuda"), {"seed": 1}, {"seed": 2}))
    trainer.iterate()
    tensors = [*trainer.optimizer.state_tensors, trainer.env._state, trainer.env._deadlines]
    before = [tensor.clone() for tensor in tensors]
    trainer._compilation.compile(trainer._noise())
    torch.cuda.synchronize()
    for mine, its in zip(tensors, before):
        assert torch.equal(mine, its)


def test_what_an_iteration_returned_is_not_overwritten_by_the_next():
    graphed, _ = pair()
    rollout = graphed.collect()
    kept = [tensor.clone() for tensor in rollout]
    graphed.iterate()
    for mine, its in zip(rollout, kept):
        assert torch.equal(mine, its)


def test_an_option_that_only_a_new_lane_has_is_captured_again():
    graphed, plain = pair()
    for trainer in (graphed, plain):
        new = dataclasses.replace(trainer.configs[0], seed=5, value_epsilon=0.05)
        trainer.replace_lanes({0: new})
        trainer.iterate()
    assert largest_difference(weights_of(graphed), weights_of(plain)) < 1e-5


@pytest.mark.parametrize("env", ["cartpole", "acrobot", "pendulum"])
def test_an_iteration_of_graphs_never_waits_for_the_device(env, forbid_syncs):
    graphed, _ = pair(f"env={env}")
    graphed.iterate()  # the first calls of what runs beside graphs load kernels
    for function in (Compilation.update, Compilation.after_update):
        forbid_syncs(Compilation, function.__name__, function)
    calls = forbid_syncs(Collector, "collect", Collector.collect)
    graphed.iterate()
    assert calls == ["collect", "update", "after_update"]


def test_graphs_keep_no_more_memory_the_longer_they_run():
    graphed, _ = pair()
    for _ in range(3):
        graphed.iterate()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        graphed.iterate()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
