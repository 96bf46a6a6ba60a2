"""How a rollout is dealt out: every row once, with all of its fields, in its own lane."""

import pytest
import torch

from ppo_lab.ppo.advantages import Advantages
from ppo_lab.ppo.rollout import Batch, ObservationStore, Rollout, lane_rows, minibatches
from ppo_lab.utils import rng

STORE = ObservationStore()


def identifiable_rollout(num_steps, num_lanes, num_envs):
    """Return a rollout whose every number says lane * 1000 + t * N + n, plus its field."""
    t = torch.arange(num_steps).view(-1, 1, 1)
    lane = torch.arange(num_lanes).view(1, -1, 1)
    env = torch.arange(num_envs).view(1, 1, -1)
    code = (lane * 1000 + t * num_envs + env).float()  # (T, L, N)
    rollout = Rollout(
        observations=torch.stack((code, code + 0.25), -1),
        actions=code.long(),
        log_probs=code + 0.5,
        values=code + 0.75,
        next_values=-code,
        rewards=-code,
        env_rewards=-code,
        terminated=code < 0,
        truncated=code < 0,
    )
    return rollout, Advantages(-code - 0.5, -code - 0.75)


def assert_belong_together(rows, observations=None):
    code = rows.actions.float()
    observations = rows.observations if observations is None else observations
    assert torch.equal(observations, torch.stack((code, code + 0.25), -1))
    assert torch.equal(rows.log_probs, code + 0.5)
    assert torch.equal(rows.values, code + 0.75)
    assert torch.equal(rows.advantages, -code - 0.5)
    assert torch.equal(rows.value_targets, -code - 0.75)


@pytest.mark.parametrize("num_lanes", [1, 3])
def test_rows_are_the_rollouts_steps_of_each_lane_in_order(num_lanes):
    rows = lane_rows(*identifiable_rollout(5, num_lanes, 4))
    expected = torch.arange(num_lanes).view(-1, 1) * 1000 + torch.arange(20)
    assert torch.equal(rows.actions, expected)
    assert_belong_together(rows)


def test_continuous_actions_keep_their_last_axis():
    rollout, advantages = identifiable_rollout(5, 2, 4)
    rows = lane_rows(rollout._replace(actions=torch.zeros(5, 2, 4, 3)), advantages)
    assert rows.actions.shape == (2, 20, 3)


@pytest.mark.parametrize("num_lanes", [1, 3])
@pytest.mark.parametrize("num_minibatches", [1, 2, 4, 20])
def test_every_row_of_every_lane_is_dealt_exactly_once_and_stays_whole(num_lanes, num_minibatches):
    rows = lane_rows(*identifiable_rollout(5, num_lanes, 4))
    keys = rng.lane_keys(torch.arange(num_lanes), rng.Stream.SHUFFLE)
    order = rng.permutation(keys, 20)
    batches = list(minibatches(rows, order.unsqueeze(0), num_minibatches, STORE))
    assert len(batches) == num_minibatches
    for batch in batches:
        assert isinstance(batch, Batch)
        assert batch.actions.shape == (num_lanes, 20 // num_minibatches)
        assert_belong_together(batch, STORE.gather(rows.observations, batch.row_index))
    dealt = torch.cat([batch.actions for batch in batches], -1)
    # Lane l's row r is numbered 1000 l + r, so the order itself must come out, lane by lane.
    assert torch.equal(dealt, order + 1000 * torch.arange(num_lanes).unsqueeze(-1))


def test_lanes_are_dealt_in_orders_of_their_own():
    rows = lane_rows(*identifiable_rollout(5, 2, 4))
    order = torch.stack((torch.arange(20), torch.arange(19, -1, -1)))
    first = next(iter(minibatches(rows, order.unsqueeze(0), 10, STORE)))
    assert first.actions.tolist() == [[0, 1], [1019, 1018]]


def test_no_batch_shares_storage_with_the_rows_it_was_dealt_from():
    rows = lane_rows(*identifiable_rollout(5, 1, 4))
    batch = next(iter(minibatches(rows, torch.arange(20).view(1, 1, 20), 1, STORE)))
    taken = STORE.gather(rows.observations, batch.row_index)
    pairs = zip((taken, *batch[1:6]), rows[:6], strict=True)
    for mine, original in pairs:
        assert mine.untyped_storage().data_ptr() != original.untyped_storage().data_ptr()
