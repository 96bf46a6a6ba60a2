"""Running statistics against VecNormalize's published algorithm, written out in numpy."""

import numpy as np
import pytest
import torch

from ppo_lab.envs.base import ContinuousActions, Env, EnvSpec, Step
from ppo_lab.envs.normalized import NormalizedEnv
from ppo_lab.envs.running_stats import Normalizer, RunningMoments, normalize

CPU = torch.device("cpu")
NUM_STEPS, L, N, SIZE = 30, 2, 5, 3
GAMMA = (0.99, 0.9)


class Reference:
    """One lane of VecNormalize: the parallel variance update, one batch at a time."""

    def __init__(self, shape, gamma):
        self.moments = {"observation": [np.zeros(shape), np.ones(shape), 1e-4]}
        self.moments["return"] = [np.zeros(()), np.ones(()), 1e-4]
        self.gamma, self.returns = gamma, np.zeros(N)

    def count(self, name, batch):
        mean, var, count = self.moments[name]
        size = batch.shape[0]
        delta, total = batch.mean(0) - mean, count + size
        squares = var * count + batch.var(0) * size + delta**2 * count * size / total
        self.moments[name] = [mean + delta * size / total, squares / total, total]

    def observe(self, observations):
        mean, var, _ = self.moments["observation"]
        return np.clip((observations - mean) / np.sqrt(var + 1e-8), -10, 10)

    def reward(self, rewards, ended):
        self.returns = self.returns * self.gamma + rewards
        self.count("return", self.returns)
        self.returns[ended] = 0
        return np.clip(rewards / np.sqrt(self.moments["return"][1] + 1e-8), -10, 10)


class Scripted(Env):
    """An environment that plays back prepared tensors."""

    def __init__(self, first, steps):
        self.spec = EnvSpec(SIZE, ContinuousActions((-1.0,), (1.0,)))
        self.num_lanes, self.num_envs, self.device = L, N, CPU
        self._first, self._steps, self._next = first, steps, 0

    def reset(self):
        self._next = 0
        return self._first

    def step(self, actions):
        self._next += 1
        return self._steps[self._next - 1]

    def reset_lane(self, lane, seed, *, is_same_run=False):
        return self._steps[self._next - 1].observations


def script(seed=0):
    """Return first observations and steps with a scale and an offset in every component."""
    rng = np.random.default_rng(seed)
    scale, offset = np.array([1.0, 100.0, 1e-3]), np.array([0.0, 50.0, 7.0])

    def observations():
        return torch.as_tensor(rng.standard_normal((L, N, SIZE)) * scale + offset)

    steps = []
    for _ in range(NUM_STEPS):
        flags = rng.random((2, L, N)) < 0.1
        terminated, truncated = torch.as_tensor(flags[0]), torch.as_tensor(flags[1] & ~flags[0])
        rewards = torch.as_tensor(rng.standard_normal((L, N)) * 5 + 2)
        rewards[0, 0] *= 40  # some are clipped
        ended = (terminated | truncated).unsqueeze(-1)
        new = observations()
        last = torch.where(ended, observations() + 3000, new)
        steps.append(Step(new, rewards, rewards, terminated, truncated, last))
    return observations(), steps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_thirty_steps_equal_vecnormalize(dtype):
    first, steps = script()
    first = first.to(dtype)
    steps = [
        Step(*(column.to(dtype) if column.is_floating_point() else column for column in step))
        for step in steps
    ]
    env = NormalizedEnv(
        Scripted(first, steps),
        observations=True,
        rewards=True,
        gamma=torch.tensor(GAMMA, dtype=torch.float64),
    )
    references = [Reference(SIZE, gamma) for gamma in GAMMA]
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"atol": 1e-5}
    ours = env.reset()
    for lane, reference in enumerate(references):
        reference.count("observation", first[lane].double().numpy())
        np.testing.assert_allclose(
            ours[lane], reference.observe(first[lane].double().numpy()), **tolerance
        )
    num_clipped = 0
    for raw in steps:
        step = env.step(torch.zeros(L, N, 1))
        assert step.observations.dtype == step.rewards.dtype == dtype
        for lane, reference in enumerate(references):
            observations, rewards, _, _, _, last = (column[lane].double().numpy() for column in raw)
            ended = (raw.terminated | raw.truncated)[lane].numpy()
            reference.count("observation", observations)
            np.testing.assert_allclose(
                step.observations[lane], reference.observe(observations), **tolerance
            )
            np.testing.assert_allclose(
                step.last_observations[lane], reference.observe(last), **tolerance
            )
            np.testing.assert_allclose(
                step.rewards[lane], reference.reward(rewards, ended), **tolerance
            )
        num_clipped += int((step.last_observations.abs() == 10).sum())
        ended = raw.terminated | raw.truncated
        assert torch.equal(step.observations[~ended], step.last_observations[~ended])
        assert torch.equal(step.env_rewards, raw.env_rewards)
    assert num_clipped > 10
    state = env.state_dict()
    for lane, reference in enumerate(references):
        for name, (mean, var, count) in reference.moments.items():
            np.testing.assert_allclose(state[f"{name}_mean"][lane], mean, rtol=1e-9)
            np.testing.assert_allclose(state[f"{name}_var"][lane], var, rtol=1e-9)
            np.testing.assert_allclose(state[f"{name}_count"][lane], count, rtol=1e-9)


def test_one_batch_by_hand():
    # 1e-4 samples of mean 0 and variance 1, then 1 and 3 (mean 2, variance 1): count 2.0001,
    # mean 2 * 2 / 2.0001, variance (1e-4 * 1 + 2 * 1 + 4 * 1e-4 * 2 / 2.0001) / 2.0001.
    moments = RunningMoments.initial(1, device=CPU)
    moments.update(torch.tensor([[1.0, 3.0]]))
    state = moments.state_dict("")
    assert state["count"].tolist() == pytest.approx([2.0001], rel=1e-12)
    assert state["mean"].tolist() == pytest.approx([4 / 2.0001], rel=1e-12)
    spread = (1e-4 + 2 + 4 * 1e-4 * 2 / 2.0001) / 2.0001
    assert state["var"].tolist() == pytest.approx([spread], rel=1e-12)


def test_many_batches_equal_the_moments_of_all_samples():
    # Far from zero, where float32 sums would lose the variance altogether.
    samples = torch.randn(500, 1, 8, 2, dtype=torch.float64) + 1e4
    moments = RunningMoments.initial(1, (2,), device=CPU)
    for batch in samples:
        moments.update(batch)
    rows = samples.flatten(0, 2)
    # The 1e-4 samples of mean 0 at the start add 1e-4 / 4000 * 1e8 = 2.5 to the variance.
    torch.testing.assert_close(moments.mean[0, 0], rows.mean(0), rtol=1e-7, atol=0)
    expected = rows.var(0, correction=0) + 2.5
    torch.testing.assert_close(moments.var[0, 0], expected, rtol=1e-4, atol=0)


def test_a_constant_feature_becomes_zero_and_not_nan():
    moments = RunningMoments.initial(1, (1,), device=CPU)
    for _ in range(3):
        moments.update(torch.full((1, 4, 1), 5.0))
    values = normalize(torch.full((1, 4, 1), 5.0), var=moments.var, mean=moments.mean)
    assert bool(values.isfinite().all())
    assert values.abs().max() < 0.1


def test_returns_by_hand_with_a_gamma_per_lane():
    # Lane 0, gamma 0.5: 1, then 0.5 + 2 = 2.5, then 0.5 * 2.5 + 4 = 5.25, which ends the episode,
    # then 3. Lane 1, gamma 0: the rewards.
    gamma = torch.tensor([0.5, 0.0])
    normalizer = Normalizer.begin(2, 1, 0, gamma=gamma, device=CPU)
    seen = []

    def advance(reward, ended=None):
        flags = None if ended is None else torch.full((2, 1), ended)
        normalizer.advance(torch.zeros(2, 1, 3), torch.full((2, 1), reward), flags)
        seen.append(normalizer.latest_returns.flatten().tolist())

    advance(1.0)
    advance(2.0, ended=False)
    advance(4.0, ended=True)
    advance(3.0)
    assert seen == [[1.0, 1.0], [2.5, 2.0], [0.0, 0.0], [3.0, 3.0]]
    # The return that ended was counted: 1, 2.5, 5.25, 3 and 1, 2, 4, 3, beside 1e-4 zeros.
    sums = torch.tensor([11.75, 10.0], dtype=torch.float64)
    torch.testing.assert_close(normalizer.returns.mean.flatten(), sums / 4.0001)
    gamma[1] = 1.0  # a lane is replaced: its gamma is read, not copied
    advance(1.0)
    assert seen[-1] == [2.5, 4.0]


def build(observations=True, rewards=True):
    return NormalizedEnv(
        Scripted(*script()), observations=observations, rewards=rewards, gamma=torch.tensor(GAMMA)
    )


def test_state_names_say_what_is_normalised():
    keys = {"mean", "var", "count"}
    assert set(build(rewards=False).state_dict()) == {f"observation_{key}" for key in keys}
    assert set(build(observations=False).state_dict()) == {f"return_{key}" for key in keys}
    shapes = {key: tuple(value.shape) for key, value in build().state_dict().items()}
    assert shapes["observation_mean"] == (L, SIZE)
    assert shapes["observation_count"] == shapes["return_var"] == (L,)


def test_a_restarted_lane_forgets_its_statistics_and_the_other_keeps_them():
    env = build()
    env.reset()
    for _ in range(20):
        env.step(torch.zeros(L, N, 1))
    before = env.state_dict()
    env.reset_lane(1, 5)
    after = env.state_dict()
    assert all(torch.equal(before[key][0], after[key][0]) for key in before)
    assert after["return_count"][1] == 1e-4
    assert after["observation_count"][1] == pytest.approx(N + 1e-4)  # its first observations count
