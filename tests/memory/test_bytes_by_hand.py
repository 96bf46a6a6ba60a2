"""One configuration of every strategy, to bytes worked out by hand: as forecast, and as counted.

Forecast and count share their marks, so what both leave out would agree. 2 x 128 tanh on CartPole's
4 numbers and 2 actions; 256 environments x 16 steps, one minibatch in two parts of 2048 rows. CUDA
gives blocks of 512 B.
"""

import pytest

from ppo_lab.forecasting.categories import Category
from ppo_lab.forecasting.counting import counted_trainer, ledger_of
from ppo_lab.forecasting.dry_run import dry_run
from ppo_lab.memory import STRATEGIES
from tests.helpers.trainers import config

RUN = (
    "network.hidden=[128,128]", "network.activation=tanh", "num_envs=256", "num_steps=16",
    "num_epochs=2", "num_minibatches=1", "memory.num_micro_batches=2",
)  # fmt: skip
# Float32: 4 B of a trunk of 5 * 128 + 129 * 128 = 17152, heads of 129 * 2 and 129.
ACTOR, CRITIC = 69640, 69124  # 70156 for one trunk with both heads
# In blocks of its own each: 2048 + 512 + 65536 + 512 for a trunk, 1024 + 512 for the policy head,
# 512 + 512 for the value head. That is 70144 for an actor, 69632 for a critic, 71168 for shared.
# Observations 16 B a row, actions 8, log probability, value, next value, both rewards, advantage
# and value target 28, both flags 2.
ROLLOUT = 256 * 16 * (16 + 8 + 28 + 2)  # 221,184
OUTPUT = 2048 * 128 * 4  # of a layer, as the second part is trained
PARTS = {
    # One bucket of both networks, 138764 B in blocks; a step count takes a block. At the peak, in
    # the backward pass of the critic's first layer: both outputs of both networks, the gradient
    # of the last output, and what tanh makes of it.
    "co_resident": (139264, 139776, 2 * 139264 + 512, 6 * OUTPUT),
    "offloaded_optimizer": (139776, 139776, 0, 6 * OUTPUT),
    # A bucket of each network; the actor is larger, and alone has gradients, moments and outputs.
    "parked": (70144 + 69632, 70144, 2 * 70144 + 2 * 512, 4 * OUTPUT),
    # Both outputs, the gradients from both heads, and their sum.
    "shared_trunk": (70656, 71168, 2 * 70656 + 512, 5 * OUTPUT),
}
# No critic: an actor's bucket; two outputs, the gradient of the last, and what tanh makes of it.
# Rollouts are whole episodes of up to 500 steps.
PARTS["critic_free"] = (70144, 70144, 2 * 70144 + 512, 4 * OUTPUT * 500 // 16)
# Rows by environment are copies: observations, actions, log probability, advantage, weight, whether
# it is live. Beside them is what was collected: without values and targets, with one flag more.
ROLLOUT_WHOLE = 256 * 500 * ((16 + 8 + 4 + 4 + 4 + 1) + (16 + 8 + 4 + 8 + 4 + 2 + 1))
LOSS_ROW = 9  # most bytes that the loss keeps of a row, when the first network's part is over


def assert_as_by_hand(strategy, peak, host):
    found = peak.by_category()
    weights, gradients, optimizer, activations = PARTS[strategy]
    assert found[Category.weights] == weights
    assert found[Category.gradients] == gradients
    assert found[Category.optimizer] == optimizer
    is_whole = strategy == "critic_free"
    assert found[Category.rollout] == (ROLLOUT_WHOLE if is_whole else ROLLOUT)
    assert activations <= found[Category.activations] < activations + 2048 * LOSS_ROW
    assert peak.total == sum(found.values())
    if strategy == "offloaded_optimizer":
        # Weights and gradients pinned, all powers of two; both moments, and 12 step counts of 4 B.
        assert host.pinned == 2 * (ACTOR + CRITIC)
        assert 2 * (ACTOR + CRITIC) + 12 * 4 <= host.pageable < 2 * (ACTOR + CRITIC) + 128
    elif strategy == "parked":
        assert host == (4 * 131_072, 0)  # two moments of each network, in powers of two
    else:
        assert host.total == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_forecast_and_count_are_the_bytes_worked_out_by_hand(strategy):
    chosen = config(f"memory={strategy}", *RUN)
    dry = dry_run(chosen)
    assert_as_by_hand(strategy, dry.phase_peaks["update"], dry.host_peak)
    trainer = counted_trainer([chosen])
    trainer.iterate()
    ledger = ledger_of(trainer)
    assert_as_by_hand(strategy, ledger.phase_peaks["update"], ledger.host_peak)
