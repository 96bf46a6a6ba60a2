"""A saved policy acts as the trained one did, from raw observations."""

import functools
import json

import gymnasium
import numpy as np
import pytest
import torch

from ppo_lab import load_policy
from ppo_lab.envs.base import ContinuousActions, DiscreteActions, EnvSpec
from ppo_lab.networks import ActorCritic, Initializer
from ppo_lab.play import evaluate
from ppo_lab.training.policy import save_policy
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import config, lanes_of, train_to_end


@functools.cache
def trained(*overrides: str, seeds: tuple[int, ...] = (1,)) -> Trainer:
    """Return a trainer that several tests share: none changes its weights."""
    sizes = ("num_envs=4", "num_steps=16", "total_steps=128", "num_epochs=1")
    base = config(*sizes, *overrides)
    trainer = Trainer(lanes_of(base, *({"seed": seed} for seed in seeds)))
    train_to_end(trainer)
    return trainer


def save(trainer: Trainer, folder, lane: int = 0, spec: EnvSpec | None = None):
    parts = trainer.configs[lane], trainer.model, trainer.env.state_dict()
    return save_policy(folder, *parts, spec=spec or trainer.spec, lane=lane)


@pytest.mark.parametrize("memory", ["co_resident", "shared_trunk", "offloaded_optimizer"])
def test_a_loaded_policy_normalises_what_it_sees(tmp_path, memory):
    trainer = trained("env=pendulum", "env.normalize_observations=true", f"memory={memory}")
    save(trainer, tmp_path)
    policy = load_policy(tmp_path)
    raw = torch.tensor([[1.0, 0.0, 0.5], [0.0, -1.0, -3.0]])
    state = trainer.env.state_dict()
    mean, var = state["observation_mean"].double(), state["observation_var"].double()
    seen = ((raw - mean) / (var + 1e-8).sqrt()).clamp(-10.0, 10.0).float().unsqueeze(0)
    expected = trainer.model.distribution.mode(trainer.model.policy(seen))[0]
    expected = expected.clamp(-2.0, 2.0).detach().numpy()  # Pendulum's torque
    actions = policy.act(raw.numpy())
    assert actions.dtype == np.float32
    assert np.isfinite(actions).all()
    np.testing.assert_allclose(actions, expected, atol=1e-6, equal_nan=False)
    # Without the statistics the actions would differ.
    unseen = trainer.model.distribution.mode(trainer.model.policy(raw.unsqueeze(0)))[0]
    assert not np.allclose(actions, unseen.clamp(-2.0, 2.0).detach().numpy(), atol=1e-3)


def test_a_policy_with_statistics_can_be_evaluated(tmp_path):
    # The one way a person would notice wrong statistics: the returns of what was saved.
    trainer = trained("env=pendulum", "env.normalize_observations=true")
    save(trainer, tmp_path)
    played = evaluate(
        load_policy(tmp_path),
        trainer.config.env,
        num_episodes=3,
        seed=1,
        deterministic=True,
        max_steps=200,
    )
    assert len(played.returns) == 3
    assert all(-2000.0 < value < 0.0 for value in played.returns)


def test_an_episode_without_an_end_is_given_up(tmp_path):
    trainer = trained("env=pendulum")
    save(trainer, tmp_path)
    with pytest.raises(TimeoutError, match="3 of 3 episodes did not end within 199 steps"):
        evaluate(
            load_policy(tmp_path),
            trainer.config.env,
            num_episodes=3,
            seed=1,
            deterministic=True,
            max_steps=199,  # Pendulum's episodes have 200
        )


def test_an_observation_of_another_shape_is_refused(tmp_path):
    save(trained("env=cartpole"), tmp_path)
    policy = load_policy(tmp_path)
    for shape in ((5,), (8,), (2, 3), (2, 2, 4)):
        with pytest.raises(ValueError, match="an observation has shape"):
            policy.act(np.zeros(shape))


def test_actions_are_counted_as_the_environment_counts_them(tmp_path):
    trainer = trained("env=cartpole")
    shifted = trainer.spec.__class__(4, DiscreteActions(2, start=5), (2, 2))
    save(trainer, tmp_path, spec=shifted)
    policy = load_policy(tmp_path)
    assert set(policy.act(np.random.default_rng(0).normal(size=(64, 2, 2))).tolist()) <= {5, 6}
    assert policy.act(np.zeros((2, 2))) in (5, 6)


def test_one_lane_of_a_stack_is_saved_alone(tmp_path):
    trainer = trained("env=cartpole", seeds=(1, 2))
    save(trainer, tmp_path, lane=1)
    observations = torch.randn(1, 64, 4, generator=torch.Generator().manual_seed(0))
    both = trainer.model.distribution.mode(trainer.model.policy(observations.expand(2, -1, -1)))
    actions = load_policy(tmp_path).act(observations[0].numpy())
    assert actions.tolist() == both[1].tolist()
    assert actions.tolist() != both[0].tolist()


def test_actions_are_clipped_to_the_box_and_shaped_as_the_observation(tmp_path):
    trainer = trained("env=pendulum")
    save(trainer, tmp_path)
    policy = load_policy(tmp_path)
    assert policy.act(np.zeros(3)).shape == (1,)
    many = policy.act(np.zeros((500, 3)), deterministic=False)
    assert many.shape == (500, 1)
    assert np.abs(many).max() <= 2.0
    assert many.std() > 0.3  # a deviation of about 1 before clipping


def test_sampled_actions_follow_from_the_seed(tmp_path):
    save(trained("env=cartpole"), tmp_path)
    first, second = load_policy(tmp_path), load_policy(tmp_path)
    observations = np.zeros((32, 4))
    a = [first.act(observations, deterministic=False, seed=3).tolist() for _ in range(2)]
    b = [second.act(observations, deterministic=False, seed=3).tolist() for _ in range(2)]
    assert a == b
    assert a[0] != a[1]  # calls differ


def test_an_unknown_format_is_refused_by_name(tmp_path):
    checkpoint = save(trained("env=cartpole"), tmp_path)
    described = json.loads((checkpoint / "policy.json").read_text()) | {"format": 99}
    (checkpoint / "policy.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="policy format 99, this version reads 1"):
        load_policy(tmp_path)


def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path):
    checkpoint = save(trained("env=cartpole"), tmp_path)
    generator = np.random.default_rng(0)
    names = ("policy.json", "model.safetensors")
    contents = {name: (checkpoint / name).read_bytes() for name in names}
    for number in range(300):
        name = names[number % 2]
        damaged = bytearray(contents[name])
        place = int(generator.integers(len(damaged)))
        if number % 3:
            damaged[place] ^= 1 << int(generator.integers(8))
        else:
            del damaged[place:]
        (checkpoint / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=str(checkpoint)):
            load_policy(tmp_path)
        (checkpoint / name).write_bytes(contents[name])
    load_policy(tmp_path)


def test_each_bit_of_the_description_counts(tmp_path):
    checkpoint = save(trained("env=cartpole"), tmp_path)
    path = checkpoint / "policy.json"
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8) if place % 16 == 0 else (place % 8,):
            path.write_bytes(
                content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
            )
            with pytest.raises(ValueError, match="policy"):
                load_policy(tmp_path)


def test_an_old_policy_without_hashes_loads_with_a_warning(tmp_path, caplog):
    checkpoint = save(trained("env=cartpole"), tmp_path)
    path = checkpoint / "policy.json"
    described = json.loads(path.read_text())
    for key in ("sha256", "has_critic", "num_tokens", "texts"):
        del described[key]
    path.write_text(json.dumps(described))
    assert load_policy(tmp_path).act(np.zeros(4)) in (0, 1)
    assert "without hashes" in caplog.text


@pytest.mark.parametrize("name", ["policy_head.weight", "log_std"])
def test_weights_that_are_not_finite_are_refused(tmp_path, name):
    trainer = trained.__wrapped__("env=pendulum")
    with torch.no_grad():
        trainer.model.get_parameter(name).view(-1)[0] = float("nan")
    save(trainer, tmp_path)
    with pytest.raises(ValueError, match="not finite"):
        load_policy(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("bound", [0.1, 1e-3, 2.0])
def test_continuous_actions_are_contained_in_their_space(tmp_path, dtype, bound):
    space = gymnasium.spaces.Box(-bound, bound, (1,), np.dtype(dtype).type)
    low, high = (tuple(map(float, side)) for side in (space.low, space.high))
    trainer = trained("env=pendulum")
    save(trainer, tmp_path, spec=EnvSpec(3, ContinuousActions(low, high, dtype)))
    policy = load_policy(tmp_path)
    many = policy.act(np.full((64, 3), 9.0), deterministic=False)
    assert all(space.contains(action) for action in many)
    assert {-bound, bound} & set(np.round(many.astype(float).flatten(), 4))  # some were clipped


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint8, np.uint16, np.bool_, ">f4"])
def test_observations_of_every_dtype_act_alike(tmp_path, dtype):
    save(trained("env=cartpole"), tmp_path)
    policy = load_policy(tmp_path)
    observations = np.eye(4, dtype=np.float32)
    as_given = np.array(observations, dtype)[::-1]  # of negative strides, too
    assert policy.act(as_given).tolist() == policy.act(observations).tolist()[::-1]


def test_a_space_of_one_number_has_the_shape_of_a_number(tmp_path):
    trainer = trained("env=pendulum")
    run, spec = trainer.config, EnvSpec(1, DiscreteActions(3, start=-1), ())
    initializer = Initializer(torch.zeros(1, dtype=torch.int64), torch.device("cpu"), torch.float32)
    model = ActorCritic(run.network, spec, initializer, shares_trunk=False)
    save_policy(tmp_path, run, model, {}, spec=spec)
    policy = load_policy(tmp_path)
    space = gymnasium.spaces.Discrete(3, start=-1)
    assert space.contains(policy.act(np.array(0.5, np.float32)))
    assert policy.act(np.zeros(5)).shape == (5,)


def test_a_folder_without_a_policy_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint/policy\.json"):
        load_policy(tmp_path)


def test_infinite_action_bounds_survive_the_file(tmp_path):
    trainer = trained("env=pendulum")
    spec = trainer.spec
    unbounded = spec.actions.__class__((-float("inf"),), (float("inf"),))
    save(trainer, tmp_path, spec=spec.__class__(spec.observation_size, unbounded))
    assert load_policy(tmp_path).spec.actions == unbounded
