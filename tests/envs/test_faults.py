"""What environments do wrong ends with the cause, the environment's number and the step."""

import logging
import signal
import time

import numpy as np
import pytest
import torch

from ppo_lab.devices.placement import Placement
from ppo_lab.envs.config import EnvConfig
from ppo_lab.envs.first_steps import FirstSteps
from ppo_lab.envs.gymnasium_env import GymnasiumEnv
from ppo_lab.utils.errors import ConfigError, EnvironmentFault
from ppo_lab.workers.worker import _exit as stop_worker
from tests.helpers import faulty_env
from tests.helpers.commands import ppo_lab

FIVE = "step() must return (observation, reward, terminated, truncated, info)"
ANSWER = "did not return within env.timeout_s=0.2 (tests/helpers/faulty_env.py:"
STEP_4 = {
    "none": f"{FIVE}, this one returned None",
    "four values": f"{FIVE}, this one returned a tuple of 4 values",
    "shape that broadcasts": "step() returned an observation of shape (1,), declared is (2,)",
    "too many numbers": "step() returned an observation of shape (3,), declared is (2,)",
    "ragged": "step() returned a ragged observation, declared is (2,)",
    "text": "step() returned an observation of type <U1, declared are numbers",
    "no observation": "step() returned an observation None, declared are numbers",
    "no reward": "step() returned the reward None, it must be one number",
    "two rewards": "step() returned the reward an array of shape (2,), it must be one number",
    "done is None": "step() returned terminated=None, it must be a bool",
    "done is a word": "step() returned terminated='no', it must be a bool",
    "done is nan": "step() returned truncated=nan, it must be a bool",
    "error": "ConnectionResetError: simulator hung up (tests/helpers/faulty_env.py:",
    "exit": "SystemExit: 3 (tests/helpers/faulty_env.py:",
    "panic": "Panic: index out of bounds (tests/helpers/faulty_env.py:",
    "sleep": ANSWER,
    "spin": ANSWER,
    "swallow": ANSWER,
}
RESET_5 = {
    "old reset": "reset() must return (observation, info), this one returned an array of shape",
    "two numbers": "reset() must return (observation, info), this one's info is 1.0",
    "error in reset": "RuntimeError: no level left (tests/helpers/faulty_env.py:",
    "sleep in reset": ANSWER,
}


def build(fault, env_id="Faulty-v0", **kwargs):
    faulty_env.Faulty.num_built = 0
    placement = Placement(torch.device("cpu"))
    options = {"timeout_s": 0.2, "kwargs": {"fault": fault} if fault else {}} | kwargs
    return GymnasiumEnv(env_id, torch.tensor([1]), 3, placement, **options)


def run(env, num_steps=5):
    env.reset()
    actions = torch.zeros(env.num_lanes, env.num_envs, dtype=torch.int64)
    return [env.step(actions) for _ in range(num_steps)]


@pytest.mark.parametrize("max_episode_steps", [None, 100])  # with a wrapper of Gymnasium's
@pytest.mark.parametrize(("fault", "words"), [*STEP_4.items(), *RESET_5.items()])
def test_a_fault_names_the_environment_the_step_and_the_cause(fault, words, max_episode_steps):
    if max_episode_steps and "timeout" in words:
        pytest.skip("the same with a wrapper")
    env = build(fault, max_episode_steps=max_episode_steps)
    with pytest.raises(EnvironmentFault) as caught:
        run(env)
    where = "reset() after step 5" if fault in RESET_5 else "step 4"
    if max_episode_steps and fault in ("none", "four values"):
        words = FIVE  # and what Gymnasium says of it
    assert str(caught.value).startswith(f"environment 1, {where}: {words}")
    assert "\n" not in str(caught.value)
    env.close()


INFINITE = {
    "nan observation": "step 4: returned observation[1] = nan",
    "infinite observation": "step 4: returned observation[0] = -inf",
    "nan at the end": "step 4: returned observation[1] = nan",
    "nan reward": "step 4: returned the reward nan",
    "nan reset": "step 5: returned observation[0] = nan",
}


@pytest.mark.parametrize(("fault", "words"), INFINITE.items())
def test_a_number_that_is_not_finite_is_logged_once_and_reaches_the_trainer(fault, words, caplog):
    steps = run(build(fault), 7)
    assert [record.getMessage() for record in caplog.records] == [f"environment 1, {words}"]
    numbers = [
        torch.cat((s.observations[0], s.last_observations[0], s.rewards.T), -1) for s in steps
    ]
    is_finite = torch.stack(numbers).isfinite().all(-1).all(0)
    assert is_finite.tolist() == [True, False, True]  # of each environment


def test_actions_that_are_not_finite_reach_no_environment():
    env = build("", env_id="Pendulum-v1")
    sent = env._env_actions(torch.tensor([[[float("nan")], [float("inf")], [1.0]]]))
    assert sent.tolist() == [[0.0], [0.0], [1.0]]


def test_the_fault_of_a_stack_names_the_lane():
    faulty_env.Faulty.num_built = 0
    placement = Placement(torch.device("cpu"))
    kwargs = {"fault": "error", "culprit": 5, "num_envs": 6}
    env = GymnasiumEnv("Faulty-v0", torch.tensor([1, 2]), 3, placement, kwargs=kwargs)
    with pytest.raises(EnvironmentFault, match="environment 2, step 4") as caught:
        run(env)
    assert caught.value.lane == 1


def test_an_environment_that_cannot_be_built_twice_closes_the_first():
    with pytest.raises(EnvironmentFault, match=r"environment 1, building: OSError: .*already in"):
        build("no constructor")
    with pytest.raises(ConfigError, match=r"cannot be built: OSError.*faulty_env.py:\d+\)$"):
        EnvConfig(
            id="Faulty-v0", kwargs={"fault": "no constructor", "num_envs": 1, "culprit": 0}
        ).check()


@pytest.mark.parametrize("fault", ["error in close", "sleep in close"])
def test_what_goes_wrong_in_close_is_logged_and_loses_nothing(fault, caplog):
    env = build(fault)
    run(env)
    env.close()
    cause = "OSError: no such process" if "error" in fault else ANSWER
    assert f"environment 1, close() after step 5: {cause}" in caplog.text


@pytest.mark.parametrize("fault", ["one reward", "loose"])
def test_numbers_of_any_type_are_taken(fault):
    steps = run(build(fault))
    assert steps[3].rewards[0].tolist() == [0.0, 2.5 if fault == "one reward" else 2.0, 0.0]
    assert steps[3].observations[0, 1].tolist() == [0.0, 0.0 if fault == "one reward" else 1.0]
    assert steps[4].terminated.all()


def test_an_observation_out_of_bounds_is_told_once(caplog):
    run(build("out of bounds"))
    (record,) = caplog.records
    assert record.getMessage() == (
        "environment 1, step 4: observation[1] = 12.5, declared is -10 to 10; "
        "correct the environment's observation_space"
    )


@pytest.mark.parametrize(
    ("stop", "kind"),
    [
        (lambda _: signal.raise_signal(signal.SIGINT), KeyboardInterrupt),
        (lambda _: stop_worker(signal.SIGTERM, None), SystemExit),
    ],
)
def test_a_signal_that_arrives_in_a_step_is_no_fault(stop, kind, monkeypatch):
    env = build("")
    env.reset()
    monkeypatch.setattr(env._envs[1], "step", stop)
    with pytest.raises(kind):
        env.step(torch.zeros(1, 3, dtype=torch.int64))


def test_a_slow_environment_is_not_overdue_while_it_answers():
    env = build("", timeout_s=0.05)
    env.reset()
    for _ in range(3):
        time.sleep(0.1)  # between steps, as an update takes
        env.step(torch.zeros(1, 3, dtype=torch.int64))
    env.close()


def test_compiled_code_that_does_not_return_ends_the_process(tmp_path):
    arguments = ["env=gymnasium", "env.id=tests.helpers.faulty_env:Faulty-v0", "num_envs=3"]
    arguments += ["+env.kwargs.fault=deadlock", "env.timeout_s=1", "network=tiny"]
    done = ppo_lab(tmp_path, *arguments, "+env.kwargs.culprit=2", "tracking=local")
    assert done.returncode == 5
    assert "environment 1, step 4: did not return within env.timeout_s=1" in done.stderr


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_episodes_that_never_end_are_told_with_the_remedy(caplog):
    env = build("", kwargs={"num_envs": 1})
    for inner in env._envs:
        inner.unwrapped._num_steps = 1e9 + 0.5  # never a multiple of 5
    run(env, 120)
    env.close()
    (warning,) = warnings_of(caplog)
    assert warning.startswith("no episode has ended in 120 steps of each environment; env.max_epi")


@pytest.mark.parametrize(("low", "high", "warns"), [(200, 400, 1), (-1e-3, 1e-3, 1), (0.9, 2, 0)])
def test_actions_that_are_all_clipped_are_told_once(low, high, warns, caplog):
    steps = FirstSteps(np.full(1, -np.inf), np.full(1, np.inf), num_envs=4)
    generator = np.random.default_rng(0)
    while not steps.are_over:
        sampled = generator.standard_normal((4, 1)).astype(np.float32)
        clipped = np.clip(sampled, low, high)
        steps.see_actions(sampled, clipped, np.float32([low]), np.float32([high]))
        steps.see_observations(np.zeros((4, 1)))
    assert len(warnings_of(caplog)) == warns
    assert caplog.text.count("RescaleAction") == warns
