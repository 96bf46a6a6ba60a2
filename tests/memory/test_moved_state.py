"""State that moves keeps its content: compared by value, after it has changed."""

import dataclasses

import torch

from ppo_lab import load_policy
from ppo_lab.play import evaluate
from ppo_lab.training.policy import save_policy
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import PENDULUM, TWENTY_STEPS, config, lanes_of, record_rows, state_of

NORMALIZED = (*PENDULUM, "env.normalize_observations=true", "env.normalize_rewards=true")


def copies(tensors):
    return [tensor.detach().clone() for tensor in tensors]


def assert_equal(mine, its):
    assert len(mine) == len(its)
    assert all(torch.equal(a, b) for a, b in zip(mine, its))


def test_parked_moments_come_up_as_they_went_down_and_go_down_as_they_were_left(monkeypatch):
    trainer = Trainer([config("memory=parked", *TWENTY_STEPS)])
    rows, optimizer = record_rows(trainer), trainer.optimizer
    trainer.update(rows)
    passes, adams, seen = optimizer.passes, list(optimizer._adams.values()), []

    def watched():
        parked = [copies(adam.moments) for adam in adams]  # as the update before left them
        assert all(tensor.any() for moments in parked for tensor in moments)
        for number, target in enumerate(passes()):
            idle = 1 - number
            assert_equal(adams[number].moments, parked[number])  # on the device, as yet unchanged
            yield target
            left = copies(adams[number].moments)
            assert not torch.equal(left[0], parked[number][0])  # the pass has changed them
            assert_equal(adams[idle].moments, parked[idle])
            parked[number] = left
            seen.append(target)
        for adam, moments in zip(adams, parked):
            assert_equal(adam.moments, moments)  # back on the host

    monkeypatch.setattr(optimizer, "passes", watched)
    trainer.update(rows)
    assert [target.value for target in seen] == ["policy", "values"]


def test_the_hosts_weights_are_the_devices_after_every_update():
    trainer = Trainer([config("memory=offloaded_optimizer", *TWENTY_STEPS)])
    rows, before = record_rows(trainer), copies(trainer.model.parameters())
    for _ in range(2):
        trainer.update(rows)
        now = copies(trainer.model.parameters())
        assert_equal([host.weights for host in trainer.optimizer._hosts.values()], now)
        assert not any(torch.equal(a, b) for a, b in zip(now, before))
        before = now


def test_a_refilled_lane_forgets_what_it_learnt_and_its_neighbours_keep_it():
    trainer = Trainer(lanes_of(config(*NORMALIZED), {"seed": 1}, {"seed": 2}, {"seed": 3}))
    fresh = Trainer(lanes_of(config(*NORMALIZED), {"seed": 1}, {"seed": 8}, {"seed": 3}))
    for _ in range(2):
        trainer.iterate()

    def held(trainer):
        state = {f"Adam {n}": tensor for n, tensor in enumerate(state_of(trainer.optimizer))}
        state |= trainer.env.state_dict()
        state["normaliser's returns"] = trainer.env.normalizer.latest_returns
        state["episodes"], state["lengths"] = trainer._episodes._return, trainer._episodes._length
        state |= dict(trainer.model.named_parameters())
        state["observations"] = trainer.collector._observations
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    before = held(trainer)
    trainer.replace_lanes({1: dataclasses.replace(trainer.config, seed=8)})
    after, new = held(trainer), held(fresh)
    for name, tensor in after.items():
        assert torch.equal(tensor[[0, 2]], before[name][[0, 2]]), name
        assert torch.equal(tensor[1], new[name][1]), name
        if not name.endswith("count"):
            assert not torch.equal(tensor[1], before[name][1]), name


def test_a_policy_in_play_keeps_the_statistics_it_was_saved_with(tmp_path):
    trainer = Trainer([config(*NORMALIZED)])
    trainer.iterate()
    state = trainer.env.state_dict()
    save_policy(tmp_path, trainer.config, trainer.model, state, spec=trainer.spec)
    trainer.iterate()  # the trainer's own go on
    assert not torch.equal(state["observation_mean"], trainer.env.state_dict()["observation_mean"])
    policy = load_policy(tmp_path)
    seen = torch.tensor([[0.5, -0.5, 3.0]]).numpy()
    first = policy.act(seen)
    short = dataclasses.replace(trainer.config.env, max_episode_steps=10)
    evaluate(policy, short, num_episodes=2, seed=1, deterministic=True, max_steps=10)
    assert (policy.act(seen) == first).all()
    for name in ("observation_mean", "observation_var"):
        assert torch.equal(policy._state[name], state[name])
