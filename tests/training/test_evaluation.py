"""Evaluation beside training: it changes nothing, and its numbers are those of the saved policy."""

import dataclasses

import gymnasium
import pytest
import torch

from ppo_lab import load_policy
from ppo_lab.config.checkpoint import CheckpointConfig
from ppo_lab.runner.resume import fork_run
from ppo_lab.runner.run import run_in_folder
from ppo_lab.training.evaluation import Evaluator
from ppo_lab.training.policy import BEST_FOLDER
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils import rng
from ppo_lab.utils.errors import ConfigError
from tests.helpers import clock_env  # noqa: F401 - registers Clock-v0
from tests.helpers.trainers import config, state_of, weights

SIZES = ("num_envs=2", "num_steps=16", "num_epochs=1", "num_minibatches=2", "total_steps=160")
EVALUATED = ("eval_every=2", "eval_episodes=3")
NORMALISED = ("env.normalize_observations=true", "env.normalize_rewards=true")
CARTPOLE = ("env=gymnasium", "env.id=CartPole-v1", "env.max_episode_steps=25", *NORMALISED)
ENVS = {
    "native": ("env=pendulum", "env.max_episode_steps=25", *NORMALISED),
    "gymnasium": CARTPOLE,
    "unreadable": ("env=gymnasium", "env.id=Clock-v0", "env.max_episode_steps=16"),
    "recurrent": ("env=cartpole_masked", "network=gru", "network.hidden=8"),
    "critic-free": ("env=cartpole", "env.max_episode_steps=25", "memory=critic_free"),
}


def lanes_of(*overrides):
    base = config(*SIZES, *overrides)
    base = dataclasses.replace(base, checkpoint=CheckpointConfig(boundary_steps=32))
    return [dataclasses.replace(base, seed=seed) for seed in (1, 2)]


def trained(configs, num_iterations=4, state=None):
    """Return a trainer after some iterations, and its records without measured times."""
    records = {}

    def keep(lane, record):
        untimed = ("time/", "perf/", "charts/SPS")
        metrics = {n: str(v) for n, v in record.metrics.items() if not n.startswith(untimed)}
        records[lane, record.iteration] = metrics

    trainer = Trainer(configs, keep)
    for lane, loaded in enumerate(state or ()):
        trainer.load_lane_state(lane, loaded)
    for _ in range(num_iterations):
        trainer.iterate()
    trainer.close()
    return trainer, records


def without_evals(records):
    return {
        at: {name: value for name, value in metrics.items() if not name.startswith("eval/")}
        for at, metrics in records.items()
    }


@pytest.mark.parametrize("kind", ENVS)
def test_evaluation_changes_no_number_of_training_and_resumes_exactly(kind):
    plain, its_records = trained(lanes_of(*ENVS[kind]))
    evaluated, records = trained(lanes_of(*ENVS[kind], *EVALUATED))
    assert without_evals(records) == its_records
    assert [at for at in records if "eval/return" in records[at]] == [
        (0, 2),
        (1, 2),
        (0, 4),
        (1, 4),
    ]
    assert all(map(torch.equal, state_of(plain.optimizer), state_of(evaluated.optimizer)))
    for lane in (0, 1):
        assert torch.equal(weights(plain, lane), weights(evaluated, lane))

    half, its_records = trained(lanes_of(*ENVS[kind], *EVALUATED), 2)
    states = [half.lane_state(lane) for lane in (0, 1)]
    resumed, more_records = trained(lanes_of(*ENVS[kind], *EVALUATED), 2, states)
    assert its_records | more_records == records
    for lane in (0, 1):
        assert resumed.history(lane) == evaluated.history(lane)
        mine, its = (t.evaluator.best[lane] for t in (resumed, evaluated))
        assert mine.step == its.step
        assert all(torch.equal(mine.tensors[name], its.tensors[name]) for name in its.tensors)


def test_the_return_is_that_of_the_best_policy_played_by_hand_with_frozen_statistics(tmp_path):
    (run, _) = lanes_of(*CARTPOLE, *EVALUATED, "env.max_episode_steps=200")
    run = dataclasses.replace(run, total_steps=64)  # two iterations: one evaluation
    summary = run_in_folder(run, tmp_path, overrides=[])
    keys = rng.fold_in(rng.lane_keys(torch.tensor([run.seed]), rng.Stream.EVAL), 2)
    returns = []
    policy = load_policy(tmp_path / BEST_FOLDER)
    for seed in (rng.bits(keys, 3)[0] & (2**31 - 1)).tolist():
        env = gymnasium.make("CartPole-v1", max_episode_steps=200)
        observation, _ = env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(policy.act(observation))
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    assert summary["final_eval_return"] == summary["best_eval_return"] == sum(returns) / 3
    assert len(set(returns)) > 1  # else any seeds would do
    assert summary["time"]["eval_s"] > 0


def test_a_lanes_evaluation_is_the_same_beside_lanes_that_are_not_evaluated():
    trainer, _ = trained(lanes_of(*ENVS["native"], *EVALUATED), 1)
    keys = rng.lane_keys(torch.tensor([1, 2]), rng.Stream.EVAL)
    evaluate = trainer.evaluator.evaluate
    both = evaluate(trainer.model, trainer.env.state_dict(), keys, [0, 1])
    assert evaluate(trainer.model, trainer.env.state_dict(), keys, [1]) == {1: both[1]}
    assert both[0]["eval/length"] == 25.0  # a pendulum never falls


@pytest.fixture
def scripted(monkeypatch):
    """Have evaluations return given numbers in their order."""

    def script(*returns):
        left = list(returns)

        def answer(self, model, state, keys, lanes):
            return {lane: {"eval/return": left.pop(0)} for lane in lanes}

        monkeypatch.setattr(Evaluator, "evaluate", answer)

    return script


def test_the_best_policy_is_kept_and_goes_along_with_a_fork(tmp_path, scripted):
    scripted(5.0, 9.0, float("nan"), 7.0, 8.0, 9.0)
    (run, _) = lanes_of("eval_every=2")  # five iterations: evaluated after 2, 4 and 5
    (tmp_path / "run").mkdir()
    summary = run_in_folder(run, tmp_path / "run", overrides=[])
    assert str(summary["final_eval_return"]) == "nan"
    assert summary["best_eval_return"] == 9.0
    at_4, _ = trained([dataclasses.replace(run, eval_every=0)])
    kept = load_policy(tmp_path / "run" / BEST_FOLDER)._model.state_dict()
    assert torch.equal(
        torch.cat([kept[n].flatten() for n, _ in at_4.model.named_parameters()]), weights(at_4)
    )

    (tmp_path / "fork").mkdir()
    longer = dataclasses.replace(run, total_steps=256)  # after 6 and 8, neither of them better
    fork_run(tmp_path / "run", tmp_path / "fork", longer)
    summary = run_in_folder(longer, tmp_path / "fork", overrides=[], resumes=True)
    assert summary["best_eval_return"] == 9.0
    names = [f"{BEST_FOLDER}/checkpoint/{name}" for name in ("model.safetensors", "policy.json")]
    for name in names:
        assert (tmp_path / "fork" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_a_diverged_policy_is_never_the_best(scripted):
    scripted(5.0, 9.0)
    trainer = Trainer(lanes_of("eval_every=1"))
    with torch.no_grad():
        trainer.model.policy_head.weight[1] = torch.nan
    trainer.iterate()
    assert trainer.history(1).diverged is not None
    assert trainer.evaluator.best[0] is not None
    assert trainer.evaluator.best[1] is None


def test_a_run_that_takes_over_a_lane_has_no_best_policy(scripted):
    scripted(5.0, 9.0)
    first, second = lanes_of("eval_every=1")
    trainer = Trainer([first, second])
    trainer.iterate()
    trainer.replace_lanes({1: dataclasses.replace(second, seed=3)})
    assert trainer.evaluator.best[0] is not None
    assert trainer.evaluator.best[1] is None
    assert trainer.lane_state(1).tensors.keys() < trainer.lane_state(0).tensors.keys()


def test_an_environment_without_a_time_limit_is_refused():
    with pytest.raises(ConfigError, match="Clock-v0 has no time limit"):
        config("env=gymnasium", "env.id=Clock-v0", "eval_every=1")
