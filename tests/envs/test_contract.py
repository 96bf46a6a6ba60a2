"""Contract of every native environment and every YAML of conf/env."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ppo_lab.devices.placement import Placement
from ppo_lab.envs import NATIVE_ENVS
from ppo_lab.envs.base import ContinuousActions, DiscreteActions
from ppo_lab.envs.config import EnvConfig
from ppo_lab.envs.text.config import TextConfig
from ppo_lab.utils.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "env"
YAMLS = {path.stem: OmegaConf.load(path) for path in sorted(CONF.glob("*.yaml"))}
TUNED = {
    *("total_steps", "lr", "lr_schedule", "epsilon", "gamma", "gae_lambda", "num_envs"),
    *("num_steps", "num_epochs", "num_minibatches", "entropy_coef", "value_coef", "max_grad_norm"),
}
CPU = torch.device("cpu")


def typed(node):
    """Return a YAML's env block as the checked dataclass."""
    node = OmegaConf.merge({"id": "MountainCarContinuous-v0"}, node) if is_generic(node) else node
    schema = TextConfig if is_text(node) else EnvConfig
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), node))


def is_generic(node):
    return OmegaConf.is_missing(node, "id")


def is_text(node):
    return "task" in node


CONFIGS = {f"native {env_id}": EnvConfig(id=env_id) for env_id in NATIVE_ENVS}
CONFIGS |= {
    f"native {env_id} normalized": EnvConfig(
        id=env_id, normalize_observations=True, normalize_rewards=True
    )
    for env_id in NATIVE_ENVS
}
for _name, _yaml in YAMLS.items():
    _node = OmegaConf.create(_yaml.env)
    if is_generic(_node):
        _node.id = "MountainCarContinuous-v0"
    if not is_text(_node):  # its episodes do not begin again within a rollout: tests/envs/text
        CONFIGS[f"{_name}.yaml"] = typed(_node)


@pytest.fixture(params=sorted(CONFIGS))
def config(request):
    found = CONFIGS[request.param]
    try:
        found.check()
    except ConfigError as error:
        if "pip install" not in str(error):
            raise
        pytest.skip(str(error))
    return found


def build(config, seeds=(1, 2), num_envs=3, dtype=torch.float32):
    return config.build(
        seeds=torch.tensor(seeds),
        num_envs=num_envs,
        gamma=torch.full((len(seeds),), 0.99),
        placement=Placement(CPU),
        dtype=dtype,
    )


def draw_actions(spec, count, num_lanes=2, num_envs=3):
    generator = torch.Generator().manual_seed(0)
    shape = (count, num_lanes, num_envs)
    if isinstance(spec.actions, DiscreteActions):
        return torch.randint(spec.actions.num_actions, shape, generator=generator)
    return torch.randn(*shape, len(spec.actions.low), generator=generator)


def test_shapes_dtypes_and_device_are_as_promised(config):
    for dtype in (torch.float32, torch.float64):
        env = build(config, dtype=dtype)
        assert env.spec == config.check()
        assert (env.num_lanes, env.num_envs, env.device) == (2, 3, CPU)
        observation = (2, 3, env.spec.observation_size)
        expected = [
            *((observation, dtype), ((2, 3), dtype), ((2, 3), dtype)),
            *(((2, 3), torch.bool), ((2, 3), torch.bool), (observation, dtype)),
        ]
        first = env.reset()
        assert (first.shape, first.dtype) == expected[0]
        for actions in draw_actions(env.spec, 10):
            step = env.step(actions)
            assert [(tuple(tensor.shape), tensor.dtype) for tensor in step] == expected
            assert all(tensor.device == CPU for tensor in step)
        env.close()


def test_an_episode_ends_at_its_limit_and_flags_never_meet(config):
    env = build(replace(config, max_episode_steps=7))
    env.reset()
    elapsed = torch.zeros(2, 3, dtype=torch.int64)
    num_ended = 0
    for actions in draw_actions(env.spec, 40):
        step = env.step(actions)
        elapsed += 1
        assert not (step.terminated & step.truncated).any()
        assert torch.equal(step.truncated, (elapsed == 7) & ~step.terminated)
        ended = step.terminated | step.truncated
        assert torch.equal(step.observations[~ended], step.last_observations[~ended])
        if isinstance(env.spec.actions, ContinuousActions) or config.id != "MountainCar-v0":
            assert bool((step.observations != step.last_observations).any(-1)[ended].all())
        elapsed.masked_fill_(ended, 0)
        num_ended += int(ended.sum())
        assert all(bool(tensor.isfinite().all()) for tensor in step)
    assert num_ended >= 30
    env.close()


def run(env, actions):
    """Return everything a run of ``actions`` returns, stacked over time."""
    first = env.reset()
    steps = [env.step(action) for action in actions]
    env.close()
    return [first, *(torch.stack(column) for column in zip(*steps, strict=True))]


def test_seeds_reproduce_a_run_and_lanes_differ(config):
    actions = draw_actions(config.check(), 20)
    first, second = run(build(config), actions), run(build(config), actions)
    assert all(torch.equal(ours, again) for ours, again in zip(first, second, strict=True))
    assert not torch.equal(first[0][0], first[0][1])
    assert len(first[0].flatten(0, 1).unique(dim=0)) == 6  # and so do environments


def test_a_reset_begins_the_same_run_again(config):
    plain = replace(config, normalize_observations=False, normalize_rewards=False)
    env = build(plain)
    first = env.reset()
    for actions in draw_actions(env.spec, 5):
        env.step(actions)
    assert torch.equal(env.reset(), first)
    env.close()


def test_a_lane_in_a_stack_equals_the_same_lane_alone(config):
    actions = draw_actions(config.check(), 20)
    together = run(build(config), actions)
    for lane, seed in enumerate((1, 2)):
        alone = run(build(config, seeds=(seed,)), actions[:, lane : lane + 1])
        torch.testing.assert_close(together[0][lane], alone[0][0], rtol=1e-5, atol=1e-5)
        for ours, own in zip(together[1:], alone[1:], strict=True):
            torch.testing.assert_close(ours[:, lane], own[:, 0], rtol=1e-5, atol=1e-5)


def test_environment_rewards_stay_raw(config):
    actions = draw_actions(config.check(), 20)
    raw = replace(config, normalize_observations=False, normalize_rewards=False)
    ours, theirs = run(build(config), actions), run(build(raw), actions)
    assert torch.equal(ours[3], theirs[3])
    assert torch.equal(theirs[2], theirs[3])


@pytest.mark.parametrize("name", sorted(YAMLS))
def test_a_yaml_says_when_to_choose_it_and_sets_known_keys_alone(name):
    lines = (CONF / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ")
    node = YAMLS[name]
    config = typed(node.env)  # raises on a key that the config does not have
    config.check_rollout(node.num_steps)
    tuned = set(node) - {"env", "defaults"}
    assert tuned in (TUNED, TUNED - {"epsilon"})
    assert ("defaults" in node) == is_text(node.env)  # a schema, and a network that reads tokens
    assert node.num_envs * node.num_steps % node.num_minibatches == 0
    assert node.lr_schedule in ("linear", "constant")
    if not is_generic(node.env):
        assert node.env.random_return < node.env.target_return
