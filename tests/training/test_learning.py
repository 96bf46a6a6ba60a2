"""It learns: parts that are right each by themselves also work together."""

import pytest

from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import config, lanes_of, train_to_end


@pytest.mark.slow
def test_four_seeds_of_cartpole_reach_300_in_60_000_steps():
    # Measured when written (torch 2.13 CPU): 392, 368, 415, 394; 6 s on one core. A uniformly
    # random policy returns 22.
    configs = lanes_of(
        config("total_steps=60000", "epsilon=0.2"), *({"seed": seed} for seed in range(1, 5))
    )
    returns = [history.final_return for history in train_to_end(Trainer(configs))]
    assert sum(returns) / len(returns) > 300.0, returns
