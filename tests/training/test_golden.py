"""A golden run: three iterations of CartPole, whose numbers a refactor must reproduce.

The numbers come from ``python -m tests.training.test_golden``, which prints the table below; run
it anew only for a change that is meant to change numbers, and say so in CHANGELOG.md. Made with
torch 2.13.0+cpu.
"""

import pytest

from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import config, train_to_end

# Name: its value after iterations 1, 2 and 3. Not here are numbers that cancel to near 0, such as
# k1: rounding alone moves their fourth digit.
GOLDEN = {
    "charts/episodes": [44, 36, 28],
    "charts/episodic_return": [19.9090909, 29.0555556, 34.6428571],
    "charts/episodic_length": [19.9090909, 29.0555556, 34.6428571],
    "losses/value_loss": [36.5613823, 29.7137871, 28.90839],
    "losses/entropy": [0.684184372, 0.670722723, 0.660391986],
    "losses/grad_norm": [19.1124973, 34.7734146, 36.2154312],
    "losses/clipfrac": [0.147070318, 0.0660156235, 0.0255859382],
    "losses/ratio_min": [0.578040719, 0.593749464, 0.599930882],
    "losses/ratio_max": [1.42184722, 1.23645329, 1.20451736],
    "losses/explained_variance": [0.00210499763, 0.0108249187, 0.0169351101],
    "ppo/clip_frac": [0.102539062, 0.0986328125, 0.0380859375],
    "ppo/ratio_p01": [0.737744212, 0.694440663, 0.751096845],
    "ppo/ratio_p99": [1.24747944, 1.1943109, 1.17335069],
    "ppo/ess_frac": [0.98505199, 0.982606888, 0.989935875],
    "ppo/entropy": [0.685395718, 0.662249625, 0.653598011],
    "ppo/advantages_std": [4.04036856, 4.53690958, 5.96576786],
}


def metrics():
    """Return each golden metric's value after every iteration of the run."""
    records = []
    run = config("network=tiny", "seed=1", "total_steps=3072")
    train_to_end(Trainer([run], lambda lane, record: records.append(record)))
    return {name: [record.metrics[name] for record in records] for name in GOLDEN}


@pytest.fixture(scope="module")
def found():
    return metrics()


@pytest.mark.parametrize("name", GOLDEN)
def test_three_iterations_of_cartpole_reproduce_the_golden_numbers(found, name):
    assert found[name] == pytest.approx(GOLDEN[name], rel=1e-4)


if __name__ == "__main__":
    for golden_name, values in metrics().items():
        print(f'    "{golden_name}": [{", ".join(f"{value:.9g}" for value in values)}],')
