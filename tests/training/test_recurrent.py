"""Recurrent policies in training: lanes, and the first update pass beside the rollout."""

import pytest
import torch

from ppo_lab.ppo.rollout import lane_rows, minibatches
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import config

ROLLOUT = ("env=cartpole_masked", "num_envs=4", "num_steps=16", "num_minibatches=2", "num_epochs=2")
NETWORKS = pytest.mark.parametrize("network", ["lstm", "gru"])


@NETWORKS
@pytest.mark.parametrize("strategy", ["co_resident", "shared_trunk"])
def test_a_lane_of_a_recurrent_stack_equals_the_run_alone(network, strategy):
    words = (*ROLLOUT, f"network={network}", f"memory={strategy}", "dtype=float64")
    stack = Trainer([config(*words, f"seed={seed}") for seed in (1, 2)])
    alone = Trainer([config(*words, "seed=2")])
    for _ in range(3):
        stack.iterate(), alone.iterate()
    for ours, own in zip(stack.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(ours[1:], own, rtol=0.0, atol=1e-12)
    assert stack.history(1).returns == alone.history(0).returns


@NETWORKS
def test_the_first_pass_of_an_update_repeats_the_rollouts_numbers(network):
    trainer = Trainer([config(*ROLLOUT, f"network={network}", f"seed={seed}") for seed in (1, 2)])
    for _ in range(3):  # the third rollout begins with memories, and episodes end within it
        rollout = trainer.collect()
        rows = lane_rows(rollout, trainer.advantages(rollout))
        permutations = trainer._permutations()
        for batch in minibatches(rows, permutations[:1], 2, trainer.plan.store):
            observations = trainer.plan.store.gather(rows.observations, batch.row_index)
            inputs = batch.sequences.inputs(observations)
            with torch.no_grad():
                found = trainer.model.evaluate(inputs, batch.actions)
            torch.testing.assert_close(found.log_probs, batch.log_probs, rtol=0.0, atol=1e-5)
            torch.testing.assert_close(found.values, batch.values, rtol=0.0, atol=1e-5)
        trainer.update(rows)
    assert bool(rollout.sequences.starts[:, 1:].any())
    assert all(bool(part.any()) for part in rollout.sequences.actor_memory)
