"""EnvConfig: wrong settings, their messages, and imports."""

import pickle
import subprocess
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from omegaconf import OmegaConf

import tests.helpers.clock_env  # noqa: F401 (registers Clock-v0 and Strange-v0)
from ppo_lab.devices.placement import Placement
from ppo_lab.envs import gymnasium_spec
from ppo_lab.envs.base import ContinuousActions, DiscreteActions, EnvSpec
from ppo_lab.envs.config import Backend, EnvConfig
from ppo_lab.utils.errors import ConfigError

BOX = spaces.Box(-1, 1, (3,))


@pytest.mark.parametrize(
    ("config", "key", "words"),
    [
        (EnvConfig(), "env.id", "name one"),
        (EnvConfig(id=""), "env.id", "name one"),
        (EnvConfig(id="CartPoal-v1"), "env.id", "did you mean CartPole-v1"),
        (EnvConfig(id="cartpole-v1"), "env.id", "did you mean CartPole-v1"),
        (EnvConfig(id="LunarLander-v2"), "env.id", "did you mean LunarLander-v3"),
        (EnvConfig(id="Zzyzx-v1"), "env.id", "pprint_registry"),
        (EnvConfig(id="two words"), "env.id", "Malformed"),
        (EnvConfig(id="ALE/Pong-v5"), "env.id", "no environment of this name"),
        (EnvConfig(id="no_such_module:Foo-v0"), "env.id", "cannot import no_such_module"),
        (EnvConfig(id="tests.helpers.clock_env:Clack-v0"), "env.id", "did you mean Clock-v0"),
        (EnvConfig(id="a:b:c"), "env.id", "module:Name-v0"),
        (EnvConfig(id=":CartPole-v1"), "env.id", "module:Name-v0"),
        (EnvConfig(id="FrozenLake-v1"), "env.id", "Discrete(16)"),
        (EnvConfig(id="Blackjack-v1"), "env.id", "Tuple"),
        (EnvConfig(id="HalfCheetah-v2"), "env.id", "gymnasium-robotics"),
        (EnvConfig(id="MountainCar-v0", backend=Backend.torch), "env.backend", "native are Acrob"),
        (
            EnvConfig(id="CartPoleMasked-v0", backend=Backend.gymnasium),
            "env.backend",
            "choose torch",
        ),
        (EnvConfig(id="CartPoleMasked-v0", kwargs={"a": 1}), "env.backend", "without env.kwargs"),
        (EnvConfig(id="CartPole-v1", max_episode_steps=0), "env.max_episode_steps", "at least 1"),
        (EnvConfig(id="CartPole-v1", timeout_s=0.0), "env.timeout_s", "> 0"),
        (EnvConfig(id="CartPole-v1", timeout_s=float("inf")), "env.timeout_s", "> 0"),
        (
            EnvConfig(id="CartPole-v1", backend=Backend.torch, kwargs={"a": 1}),
            "env.kwargs",
            "backend=gymnasium",
        ),
        (EnvConfig(id="CartPole-v1", kwargs={"nonsense": 1}), "env.kwargs", "nonsense"),
        (
            EnvConfig(id="Clock-v0", kwargs={"max_episode_steps": 1}),
            "env.kwargs.max_episode_steps",
            "set env.max_episode_steps",
        ),
    ],
)
def test_a_wrong_setting_names_its_key_and_the_remedy(config, key, words):
    with pytest.raises(ConfigError) as caught:
        config.check()
    assert caught.value.key == key
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("observations", "actions", "words"),
    [
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), BOX, "supported is a Box"),
        (spaces.Box(0, 1, (0,)), BOX, "supported is a Box"),
        (spaces.Dict({"a": BOX}), BOX, "FlattenObservation makes a vector"),
        (BOX, spaces.MultiDiscrete([2, 3]), "supported are Discrete and a 1-D Box"),
        (BOX, spaces.Box(-1, 1, (2, 2)), "supported are Discrete and a 1-D Box"),
    ],
)
def test_unsupported_spaces_are_refused_with_what_is_supported(observations, actions, words):
    kwargs = {"observation_space": observations, "action_space": actions}
    with pytest.raises(ConfigError, match=words):
        EnvConfig(id="Strange-v0", kwargs=kwargs).check()


def test_boxes_are_flattened_and_may_be_unbounded():
    kwargs = {
        "observation_space": spaces.Box(-1, 1, (2, 3)),
        "action_space": spaces.Box(-np.inf, np.inf, (2,)),
    }
    inf = float("inf")
    expected = EnvSpec(6, ContinuousActions((-inf, -inf), (inf, inf)), observation_shape=(2, 3))
    assert EnvConfig(id="Strange-v0", kwargs=kwargs).check() == expected


@pytest.mark.parametrize(
    ("space", "size", "shape"),
    [
        (spaces.Box(-10, 20, (2,), np.int64), 2, None),
        (spaces.Box(0, 1, (2, 2), np.bool_), 4, (2, 2)),
        (spaces.Box(0, 255, (4,), np.uint8), 4, None),
        (spaces.MultiBinary(3), 3, None),
        (spaces.Box(-1, 1, ()), 1, ()),
    ],
)
def test_boxes_of_any_numbers_are_vectors(space, size, shape):
    kwargs = {"observation_space": space, "action_space": BOX}
    spec = EnvConfig(id="Strange-v0", kwargs=kwargs).check()
    assert (spec.observation_size, spec.observation_shape, spec.shape) == (size, shape, space.shape)


def test_a_module_is_imported_for_its_environment():
    assert EnvConfig(id="tests.helpers.clock_env:Clock-v0").check() == EnvSpec(
        2, DiscreteActions(4, start=5)
    )


@pytest.mark.parametrize(
    ("env_id", "package", "extra"),
    [("LunarLander-v3", "Box2D", "box2d"), ("Hopper-v5", "mujoco", "mujoco")],
)
def test_a_missing_package_is_named_with_its_extra(env_id, package, extra, monkeypatch):
    monkeypatch.setattr(gymnasium_spec, "_SPECS", {})
    for name in [name for name in sys.modules if name.startswith(f"gymnasium.envs.{extra}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'ppo_lab\[{extra}\]'"):
        EnvConfig(id=env_id).check()


def test_an_environment_is_built_once_for_all_checks_with_the_same_kwargs(monkeypatch):
    monkeypatch.setattr(gymnasium_spec, "_SPECS", {})
    make, made = gymnasium.make, []
    monkeypatch.setattr(gymnasium, "make", lambda *a, **b: (made.append(b), make(*a, **b))[1])
    for shape in ([2], [2], [3]):  # as YAML gives them
        config = EnvConfig(id="Clock-v0", kwargs={"shape": shape})
        assert config.check().observation_size == shape[0]
    assert [options["shape"] for options in made] == [[2], [3]]


def test_a_config_takes_its_spec_to_another_process(monkeypatch):
    config = EnvConfig(id="Clock-v0", kwargs={"shape": [5]})
    spec, sent = config.check(), pickle.dumps(config)
    monkeypatch.setattr(gymnasium_spec, "_SPECS", {})
    monkeypatch.setattr(gymnasium, "make", None)  # no environment is built
    received = pickle.loads(sent)
    assert received == config
    assert received.check() == replace(received, timeout_s=9.0).check() == spec


def test_what_training_builds_need_not_be_built_for_a_check(monkeypatch):
    monkeypatch.setattr(gymnasium_spec, "_SPECS", {})
    space = spaces.Box(-1, 1, (7,))
    config = EnvConfig(id="Strange-v0", kwargs={"observation_space": space, "action_space": BOX})
    options = {"num_envs": 1, "gamma": torch.ones(1), "placement": Placement(torch.device("cpu"))}
    env = config.build(seeds=torch.tensor([1]), **options)
    monkeypatch.setattr(gymnasium, "make", None)
    assert config.check() is env.spec


MODULES = {
    "import some_simulator": "ModuleNotFoundError: No module named 'some_simulator' (PATH:1); inst",
    "\n1 / 0": "cannot be built: ZeroDivisionError: division by zero (PATH:2)",
    "def": "cannot be built: SyntaxError: ",
    "import sys; sys.exit(3)": "cannot be built: SystemExit: 3 (PATH:1)",
    "import time; time.sleep(60)": "cannot be built within env.timeout_s",
    "": "no environment of this name",
}


@pytest.mark.parametrize(("code", "words"), MODULES.items())
def test_an_error_in_the_users_module_is_one_line_with_its_place(
    code, words, tmp_path, monkeypatch
):
    name = f"own_{list(MODULES).index(code)}"
    path = tmp_path / f"{name}.py"
    path.write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        EnvConfig(id=f"{name}:Own-v0", timeout_s=0.2).check()
    assert words.replace("PATH", str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mujoco_writes_no_file_and_warns_once(tmp_path, monkeypatch, caplog):
    mujoco = pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    env = gymnasium_spec.make_env("InvertedPendulum-v5", {}).unwrapped
    for _ in range(3):
        env.reset()
        env.data.qvel[:] = 1e12
        mujoco.mj_step(env.model, env.data)
    assert caplog.text.count("MuJoCo: ") <= 1  # per process
    assert list(tmp_path.iterdir()) == []


def test_auto_is_torch_for_native_environments_without_kwargs():
    assert EnvConfig(id="CartPole-v1").resolved_backend() is Backend.torch
    assert EnvConfig(id="MountainCar-v0").resolved_backend() is Backend.gymnasium
    with_kwargs = EnvConfig(id="CartPole-v1", kwargs={"sutton_barto_reward": True})
    assert with_kwargs.resolved_backend() is Backend.gymnasium
    assert with_kwargs.check() == EnvConfig(id="CartPole-v1").check()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"])
def test_both_backends_have_the_same_spec(env_id):
    native = EnvConfig(id=env_id, backend=Backend.torch).check()
    assert native == EnvConfig(id=env_id, backend=Backend.gymnasium).check()


def test_a_native_run_never_imports_gymnasium():
    code = """
import sys, torch
from ppo_lab.envs.config import EnvConfig
from ppo_lab.devices.placement import Placement
config = EnvConfig(id="CartPole-v1", normalize_observations=True, normalize_rewards=True)
config.check()
env = config.build(seeds=torch.tensor([1]), num_envs=2, gamma=torch.tensor([0.99]),
                   placement=Placement(torch.device("cpu")))
env.reset(), env.step(torch.ones(1, 2, dtype=torch.int64))
assert "gymnasium" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_gives_typed_values():
    schema = OmegaConf.structured(EnvConfig)
    words = ["id=CartPole-v1", "backend=gymnasium", "kwargs={a: 1}", "max_episode_steps=9"]
    config = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.from_dotlist(words)))
    assert config == EnvConfig(
        id="CartPole-v1", backend=Backend.gymnasium, kwargs={"a": 1}, max_episode_steps=9
    )
