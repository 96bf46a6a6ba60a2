"""The page's JavaScript computes the actions of Python's policies and environments."""

import base64
import dataclasses
import json
import shutil
import struct
import subprocess

import pytest
import torch

from ppo_lab.devices.placement import Placement
from ppo_lab.reports import players
from ppo_lab.reports.players import saved_policy
from ppo_lab.training.policy import load_policy, save_policy
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import config

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no node to run the page's JavaScript")
PLAYER = f"{players.__file__.removesuffix('players.py')}assets/player.js"
PROGRAM = """
const PPO = require(process.argv[1]);
const { env, policy, starts, limit } = JSON.parse(require("fs").readFileSync(0));
const play = (start) => PPO.play(PPO.envs[env], PPO.load(policy), start, limit);
console.log(JSON.stringify(starts.map(play)));
"""


def played_in_javascript(env, policy, *starts, limit=500):
    given = json.dumps({"env": env, "policy": policy, "starts": starts, "limit": limit})
    done = subprocess.run(
        [NODE, "-e", PROGRAM, PLAYER], input=given, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def played_in_python(policy, env_config, seed, limit=100):
    """Return the start, the actions and the sum of rewards of the first steps of an episode."""
    env = env_config.build(
        seeds=torch.tensor([seed]), num_envs=1, gamma=torch.ones(1),
        placement=Placement(torch.device("cpu")), num_steps=None,
    )  # fmt: skip
    observations = env.reset()
    start, actions, total = env._state[0, 0].tolist(), [], 0.0
    for _ in range(limit):
        chosen = policy.act(observations[0].numpy())
        step = env.step(torch.as_tensor(chosen).unsqueeze(0))
        actions.append(chosen[0].item())
        total += step.rewards.item()
        observations = step.observations
        if step.terminated.item():
            break
    return start, actions, total


@needs_node
@pytest.mark.parametrize("env", ["cartpole", "acrobot", "pendulum"])
@pytest.mark.parametrize("normalised", [False, True])
def test_the_first_100_actions_are_pythons(env, normalised, tmp_path):
    given = config(
        f"env={env}", "num_envs=4", "num_steps=32", "num_epochs=2", "num_minibatches=2",
        "total_steps=1024", f"env.normalize_observations={str(normalised).lower()}",
    )  # fmt: skip
    trainer = Trainer([given], lambda lane, record: None)
    for _ in range(2):
        trainer.iterate()
    state, spec = trainer.env.state_dict(), trainer.spec
    save_policy(tmp_path, given, trainer.model, state, spec=spec)
    policy, saved = load_policy(tmp_path), saved_policy(tmp_path)
    assert ("mean" in saved) is normalised
    raw = dataclasses.replace(given.env, normalize_observations=False, normalize_rewards=False)
    ours = [played_in_python(policy, raw, seed) for seed in range(3)]
    theirs = played_in_javascript(raw.id, saved, *(start for start, _, _ in ours), limit=100)
    for (_, actions, total), found in zip(ours, theirs):
        # Discrete actions are equal; a torque differs by float32's rounding, which the 100 steps
        # amplify.
        assert found["actions"] == pytest.approx(actions, abs=2e-3 if env == "pendulum" else 0)
        assert found["total"] == pytest.approx(total, rel=1e-4)


def balancing_policy(folder):
    """Save a policy with one unit that pushes the cart to where the pole falls."""
    given = config("network.hidden=[1]")
    trainer = Trainer([given], lambda lane, record: None)
    layer, head = trainer.model.actor.layers[0], trainer.model.policy_head
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.01, 0.05, 0.4, 0.2]).view(1, 4, 1))
        layer.bias.zero_()
        head.weight.copy_(torch.tensor([-1.0, 1.0]).view(1, 1, 2))
        head.bias.zero_()
    save_policy(folder, given, trainer.model, {}, spec=trainer.spec)
    return saved_policy(folder)


@needs_node
def test_a_policy_that_balances_does_so_in_the_page_and_its_mirror_image_falls(tmp_path):
    policy = balancing_policy(tmp_path)
    (found,) = played_in_javascript("CartPole-v1", policy, [0.03, -0.02, 0.04, 0.01])
    assert (len(found["actions"]), found["ended"]) == (500, False)
    policy["layers"][1][0] = base64.b64encode(struct.pack("<2f", 1.0, -1.0)).decode()
    (fallen,) = played_in_javascript("CartPole-v1", policy, [0.03, -0.02, 0.04, 0.01])
    assert len(fallen["actions"]) < 20
    assert fallen["ended"]


def test_what_is_no_multilayer_perceptron_does_not_play(tmp_path):
    given = config(
        "env=cartpole_masked", "network=lstm", "num_envs=2", "num_steps=8", "num_minibatches=1"
    )
    trainer = Trainer([given], lambda lane, record: None)
    save_policy(tmp_path, given, trainer.model, trainer.env.state_dict(), spec=trainer.spec)
    assert saved_policy(tmp_path) is None


def test_damaged_weights_do_not_play(tmp_path):
    balancing_policy(tmp_path)
    path = tmp_path / "checkpoint" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ValueError, match="damaged"):
        saved_policy(tmp_path)
