"""LaneAdam against torch.optim.Adam, lane by lane."""

import math

import pytest
import torch
from torch.nn import Parameter

from ppo_lab.ppo import adam as optimizer_module
from ppo_lab.ppo.adam import LaneAdam, clip_coefficient
from tests.helpers.trainers import state_of

SHAPES = ((3, 4), (1, 4), (4, 2), (1, 2))  # of one lane: two layers' weights and biases
NUM_STEPS = 20


def draw(generator, num_lanes, dtype, scale=1.0):
    return [
        scale * torch.randn(num_lanes, *shape, generator=generator, dtype=dtype) for shape in SHAPES
    ]


def gradients(num_lanes, dtype, seed=1):
    """Return NUM_STEPS lists of gradients, whose norms lie on both sides of 1."""
    generator = torch.Generator().manual_seed(seed)
    scales = [0.02 * 1.4**step for step in range(NUM_STEPS)]  # 0.02 to 12
    return [draw(generator, num_lanes, dtype, scale) for scale in scales]


def parameters(num_lanes, dtype=torch.float32):
    return [Parameter(t) for t in draw(torch.Generator().manual_seed(0), num_lanes, dtype)]


def run(adam, steps, *, lr, max_grad_norm, active=None):
    """Take ``steps``; return the norms that were reported, one tensor (L,) a step."""
    dtype = adam.parameters[0].dtype
    norms = []
    for i, step in enumerate(steps):
        for parameter, gradient in zip(adam.parameters, step):
            parameter.grad = gradient.clone()
        norms.append(
            adam.step(
                lr=torch.tensor(lr, dtype=dtype),
                max_grad_norm=torch.tensor(max_grad_norm, dtype=dtype),
                active=None if active is None else active[i],
            )[0]
        )
    return norms


def torch_adam(lane, start, steps, *, lr, max_grad_norm, active=None):
    """Return one lane's parameters after torch's own clipping and Adam, and the norms."""
    mine = [Parameter(p.detach()[lane].clone()) for p in start]
    adam = torch.optim.Adam(mine, lr=lr, betas=(0.9, 0.999), eps=1e-5)
    norms = []
    for i, step in enumerate(steps):
        if active is not None and not active[i][lane]:
            continue
        for parameter, gradient in zip(mine, step):
            parameter.grad = gradient[lane].clone()
        norms.append(torch.nn.utils.clip_grad_norm_(mine, max_grad_norm))
        adam.step()
    return mine, torch.stack(norms)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["f32", "f64"]
)
@pytest.mark.parametrize(
    ("lr", "max_grad_norm"),
    [([1e-2], [1.0]), ([1e-2, 1e-3, 3e-2], [1.0, 0.1, math.inf])],
    ids=["alone", "three lanes"],
)
def test_every_lane_takes_torchs_adam_steps_with_its_own_lr_and_clip(
    lr, max_grad_norm, dtype, tolerance
):
    start, steps = parameters(len(lr), dtype), gradients(len(lr), dtype)
    adam = LaneAdam(parameters(len(lr), dtype), eps=1e-5)
    norms = run(adam, steps, lr=lr, max_grad_norm=max_grad_norm)
    for lane in range(len(lr)):
        expected, expected_norms = torch_adam(
            lane, start, steps, lr=lr[lane], max_grad_norm=max_grad_norm[lane]
        )
        torch.testing.assert_close(torch.stack(norms)[:, lane], expected_norms)
        for mine, theirs, before in zip(adam.parameters, expected, start):
            assert (mine[lane] - theirs).abs().max() < tolerance
            assert (mine[lane] - before[lane]).abs().max() > 1e-2 * lr[lane]  # it did move


def test_a_lane_that_is_switched_off_stands_still_and_goes_on_as_if_never_asked():
    lr, limit = [1e-2, 1e-2], [1.0, 1.0]
    start, steps = parameters(2, torch.float64), gradients(2, torch.float64)
    active = [torch.tensor([i % 3 != 1, True]) for i in range(NUM_STEPS)]
    adam = LaneAdam(parameters(2, torch.float64), eps=1e-5)
    run(adam, steps, lr=lr, max_grad_norm=limit, active=active)
    for lane in range(2):
        expected, _ = torch_adam(lane, start, steps, lr=1e-2, max_grad_norm=1.0, active=active)
        for mine, theirs in zip(adam.parameters, expected):
            assert (mine[lane] - theirs).abs().max() < 1e-12


@pytest.mark.parametrize("poison", [1.0, math.inf, math.nan])
@pytest.mark.parametrize("after", [0, 3])
def test_an_inactive_lane_keeps_parameters_moments_and_count_whatever_its_gradient(poison, after):
    adam = LaneAdam(parameters(2), eps=1e-5)
    steps = gradients(2, torch.float32)
    run(adam, steps[:after], lr=[1e-2] * 2, max_grad_norm=[1.0] * 2)
    before = [p.detach().clone() for p in adam.parameters]
    state = [tensor.clone() for tensor in state_of(adam)]
    bad = [gradient.clone() for gradient in steps[after]]
    for gradient in bad:
        gradient[0].fill_(poison)
    run(
        adam,
        [bad],
        lr=[1e-2] * 2,
        max_grad_norm=[1.0] * 2,
        active=[torch.tensor([False, True])],
    )
    for mine, kept in zip(adam.parameters, before):
        assert torch.equal(mine[0], kept[0])
        assert not torch.equal(mine[1], kept[1])
        assert mine.isfinite().all()
    for now, then in zip(state_of(adam), state, strict=True):
        assert torch.equal(now[0], then[0])
        assert not torch.equal(now[1], then[1])


def test_no_switch_is_every_lane_switched_on():
    steps, on = gradients(2, torch.float32), torch.ones(2, dtype=torch.bool)
    adams = [LaneAdam(parameters(2), eps=1e-5) for _ in range(2)]
    for adam, active in zip(adams, (None, [on] * NUM_STEPS)):
        run(adam, steps, lr=[1e-2, 1e-3], max_grad_norm=[1.0, 0.1], active=active)
    for mine, theirs in zip(adams[0].parameters, adams[1].parameters):
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=1e-7)


def test_several_buckets_take_the_same_steps_as_one(monkeypatch):
    lr, limit = [1e-2, 1e-3], [0.5, math.inf]
    steps = gradients(2, torch.float64)
    one = LaneAdam(parameters(2, torch.float64), eps=1e-5)
    norms = run(one, steps, lr=lr, max_grad_norm=limit)
    # Two lanes of 12, 4, 8 and 2 numbers: 24 | 8 + 16 | 4 with room for 24.
    monkeypatch.setattr(optimizer_module, "_BUCKET_SIZE", 24)
    several = LaneAdam(parameters(2, torch.float64), eps=1e-5)
    assert len(several.weights()) == 3
    torch.testing.assert_close(run(several, steps, lr=lr, max_grad_norm=limit), norms)
    for mine, theirs in zip(several.parameters, one.parameters):
        assert (mine - theirs).abs().max() < 1e-12


def test_a_parameter_larger_than_a_bucket_has_one_to_itself(monkeypatch):
    monkeypatch.setattr(optimizer_module, "_BUCKET_SIZE", 5)
    adam = LaneAdam(parameters(1), eps=1e-5)
    assert [bucket.shape[-1] for bucket in adam.weights()] == [12, 4, 8, 2]


def test_an_infinite_limit_never_clips_and_a_finite_one_joins_all_parameters():
    norms = torch.tensor([0.5, 2.0, 1e20, 2.0, 0.0])
    limits = torch.tensor([1.0, 1.0, math.inf, math.inf, 1.0])
    assert clip_coefficient(norms, limits).tolist() == pytest.approx([1.0, 0.5, 1.0, 1.0, 1.0])
    adam = LaneAdam(parameters(1), eps=1e-5)
    ones = [torch.ones_like(p) for p in adam.parameters]
    # 12 + 4 + 8 + 2 = 26 ones: the joint norm, before clipping.
    (norm,) = run(adam, [ones], lr=[1e-3], max_grad_norm=[0.1])
    assert norm.item() == pytest.approx(math.sqrt(26.0))


def test_a_parameter_without_a_gradient_counts_as_zero():
    with_zero, without = LaneAdam(parameters(1), eps=1e-5), LaneAdam(parameters(1), eps=1e-5)
    step = gradients(1, torch.float32)[5]
    zeroed = [torch.zeros_like(step[0]), *step[1:]]
    (norm,) = run(with_zero, [zeroed], lr=[1e-2], max_grad_norm=[0.1])
    for parameter, gradient in zip(without.parameters[1:], step[1:]):
        parameter.grad = gradient.clone()
    (other,) = without.step(
        lr=torch.tensor([1e-2]), max_grad_norm=torch.tensor([0.1]), active=torch.tensor([True])
    )
    assert torch.equal(norm, other)
    for mine, theirs in zip(with_zero.parameters, without.parameters):
        assert torch.equal(mine, theirs)


def test_parameters_are_views_of_one_bucket_and_keep_their_numbers():
    start = parameters(2)
    adam = LaneAdam(parameters(2), eps=1e-5)
    storages = {p.untyped_storage().data_ptr() for p in adam.parameters}
    assert len(storages) == 1
    for mine, theirs in zip(adam.parameters, start):
        assert torch.equal(mine, theirs)
        assert mine.shape == theirs.shape


def test_zero_grad_frees_the_gradients():
    adam = LaneAdam(parameters(1), eps=1e-5)
    for parameter in adam.parameters:
        parameter.grad = torch.ones_like(parameter)
    adam.zero_grad()
    assert all(parameter.grad is None for parameter in adam.parameters)
