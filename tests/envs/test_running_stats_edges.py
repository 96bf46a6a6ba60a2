"""Running statistics that are reset, restored and go on."""

import torch

from ppo_lab.envs.running_stats import Normalizer, RunningMoments

CPU = torch.device("cpu")


def advanced(num_steps, normalizer=None, seed=0):
    """Return a normaliser of 3 lanes x 2 environments x 1 number after ``num_steps`` steps."""
    gamma = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    normalizer = normalizer or Normalizer.begin(3, 2, 1, gamma=gamma, device=CPU)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        observations = torch.randn(3, 2, 1, generator=generator, dtype=torch.float64) + 5.0
        rewards = torch.randn(3, 2, generator=generator, dtype=torch.float64) + 2.0
        normalizer.advance(observations, rewards, None)
    return normalizer


def test_what_is_reset_has_seen_nothing():
    moments = RunningMoments.initial(2, device=CPU)
    moments.update(torch.tensor([[1.0, 3.0], [5.0, 5.0]]))
    moments[:1].reset()
    state = moments.state_dict("")
    assert state["mean"].tolist()[0] == 0.0
    assert state["var"].tolist()[0] == 1.0
    assert state["count"].tolist()[0] == 1e-4
    assert state["mean"].tolist()[1] > 4.9


def test_a_lane_that_is_reset_forgets_alone_and_its_return_begins_at_zero():
    normalizer, before = advanced(4), advanced(4)
    for lane in (0, 1):
        normalizer.reset_lane(lane)
        for now, then in zip(normalizer.tensors[:4], before.tensors[:4]):
            assert torch.equal(now[lane + 1 :], then[lane + 1 :])
            assert not torch.equal(now[lane], then[lane])
    assert not normalizer.latest_returns[:2].any()
    fresh = advanced(3, seed=9)
    advanced(3, normalizer, seed=9)
    for now, new in zip(normalizer.tensors[:4], fresh.tensors[:4]):
        assert torch.equal(now[:2], new[:2])


def test_a_lane_in_a_checkpoint_has_the_names_of_earlier_ones():
    normalizer = advanced(4)
    tensors = normalizer.lane_tensors(1)
    assert list(tensors) == ["mean", "var", "count", "latest"]
    for tensor, every in zip(tensors.values(), normalizer.tensors):
        assert torch.equal(tensor, every[1])


def test_new_episodes_of_all_environments_begin_their_returns_and_keep_the_statistics():
    normalizer, before = advanced(4), advanced(4)
    assert normalizer.latest_returns.all()
    normalizer.reset_returns()
    assert not normalizer.latest_returns.any()
    for now, then in zip(normalizer.tensors[:3], before.tensors[:3]):
        assert torch.equal(now, then)
    without = Normalizer.begin(3, 2, 1, gamma=None, device=CPU)
    without.reset_returns()  # there are none
    assert without.returns is None
