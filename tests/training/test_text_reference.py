"""The frozen reference of texts: the KL in the rewards, and runs with it under every strategy."""

import dataclasses
import logging
import math

import pytest
import torch

from ppo_lab.devices.placement import Place
from ppo_lab.ppo.rollout import by_env
from ppo_lab.ppo.update import AdvantageNormalization
from ppo_lab.training.reference import adapted_coef, text_kl, with_penalty
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.errors import ConfigError
from tests.helpers.texts import text_config
from tests.helpers.trainers import lanes_of, weights
from tests.training.test_lane_state import numbers_in

STRATEGIES = ("co_resident", "shared_trunk", "offloaded_optimizer", "parked", "critic_free")


def trained(configs, num_iterations):
    records = []
    trainer = Trainer(configs, lambda *record: records.append(record))
    for _ in range(num_iterations):
        trainer.iterate()
    return trainer, records


def test_the_penalty_is_that_worked_out_by_hand():
    """Two steps, one lane, two texts; the second text's last step is dead."""
    log_ratio = torch.tensor([[[0.5, -1.0]], [[0.25, math.inf]]])
    live = torch.tensor([[[True, True]], [[True, False]]])
    rewards = torch.tensor([[[0.0, 0.0]], [[1.0, 3.0]]])
    penalized = with_penalty(rewards, log_ratio, live, torch.tensor([0.2]))
    expected = torch.tensor([[[-0.1, 0.2]], [[0.95, 3.0]]])
    torch.testing.assert_close(penalized, expected)
    k1, k3 = text_kl(log_ratio, live)
    assert k1.tolist() == pytest.approx([(0.75 - 1.0) / 2])
    by_hand = (math.exp(-0.5) - 0.5) + (math.exp(-0.25) - 0.75) + (math.e - 2.0)
    assert k3.tolist() == pytest.approx([by_hand / 2])


def test_each_lane_has_its_own_coefficient():
    ones = torch.ones(1, 2, 1)
    penalized = with_penalty(0.0 * ones, ones, ones.bool(), torch.tensor([0.5, 2.0]))
    assert penalized.flatten().tolist() == [-0.5, -2.0]


@pytest.mark.parametrize(
    ("kl", "factor"), [(1.0, 1.0), (1.1, 1.01), (5.0, 1.02), (0.9, 0.99), (-3.0, 0.98)]
)
def test_beta_follows_the_kl_by_two_percent_at_most(kl, factor):
    adapted = adapted_coef(torch.tensor([0.3]), torch.tensor([kl]), 1.0)
    assert adapted.tolist() == pytest.approx([0.3 * factor])


def of_first_rollout(config):
    """Return a new trainer, its rollout, and log-ratios of live steps to the update's pass."""
    trainer = Trainer([config])
    rollout = trainer._evaluate(trainer.collector, trainer.collect())
    inputs = rollout.sequences.inputs(by_env(rollout.observations))
    with torch.no_grad():
        new = trainer.model.evaluate(inputs, by_env(rollout.actions), with_values=False)
    live = by_env(rollout.live)
    return trainer, rollout, (new.log_probs - by_env(rollout.log_probs))[live]


# With 24 bits of significand a log-probability near -4 is known to 2e-7; with 8 bits logits near 1
# are known to 2e-3, and attention over the cache adds such errors up.
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_a_new_policy_equals_its_reference_and_the_update_equals_the_generation(dtype, most):
    trainer, rollout, log_ratio = of_first_rollout(text_config(f"dtype={dtype}"))
    assert rollout.live.sum() > 20
    assert rollout.log_probs[rollout.live].std() > 0.3  # not uniform
    assert log_ratio.exp().sub(1.0).abs().max() < most
    assert trainer._text_kl.kl.abs() < 10 * most
    assert trainer._text_kl.kl_k3 < most
    reference = trainer.reference.log_probs(rollout, trainer.plan)
    assert (reference - rollout.log_probs)[rollout.live].abs().max() < most


def test_rewards_have_the_penalty_and_returns_do_not():
    trainer, records = trained([text_config("lr=0.01", "env.kl_coef=0.7")], 2)
    rollout = trainer.collect()
    before = trainer.collector.evaluate(rollout)
    after, kl = trainer.reference.evaluate(before, trainer.plan)
    log_ratio = rollout.log_probs - trainer.reference.log_probs(rollout, trainer.plan)
    difference = (before.rewards - after.rewards)[rollout.live]
    torch.testing.assert_close(difference, 0.7 * log_ratio[rollout.live], atol=1e-6, rtol=1e-5)
    assert torch.equal(after.rewards[~rollout.live], before.rewards[~rollout.live])
    assert torch.equal(after.env_rewards, before.env_rewards)
    assert kl.kl_k3 > 0.01  # the policy has left the reference
    metrics = records[1][1].metrics
    penalized = metrics["text/reward_mean"] - 0.7 * metrics["text/kl"]
    assert metrics["text/reward_with_kl"] == pytest.approx(penalized, abs=1e-5)
    assert metrics["charts/episodic_return"] == pytest.approx(metrics["text/reward_mean"])


def test_every_lane_starts_from_the_reference_and_so_does_a_new_run():
    configs = lanes_of(text_config(), {"seed": 1}, {"seed": 2})
    trainer, _ = trained(configs, 1)
    reference = dict(trainer.reference.model.named_parameters())
    trainer.reference.kl_coef.fill_(9.0)
    trainer.replace_lanes({1: dataclasses.replace(configs[0], seed=3)})
    assert trainer.reference.kl_coef.tolist() == pytest.approx([9.0, 0.3])
    fresh = Trainer(lanes_of(text_config(), {"seed": 3}))
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(parameter[0], parameter[1]), name
        assert torch.equal(parameter[1], fresh.model.get_parameter(name)[0]), name
        source = name.replace("critic.", "actor.")
        if source in reference:
            assert torch.equal(parameter[1], reference[source][0]), name


def test_training_leaves_the_reference_alone():
    trainer, _ = trained([text_config("lr=0.01")], 1)
    untouched = Trainer([text_config("lr=0.01")])
    for mine, its in zip(trainer.reference.weights(), untouched.reference.weights(), strict=True):
        assert torch.equal(mine, its)
        assert not mine.requires_grad


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_writes_texts(strategy):
    trainer, records = trained([text_config(f"memory={strategy}", "env.samples_every=2")], 3)
    for _, record in records:
        metrics = record.metrics
        assert all(math.isfinite(value) for value in metrics.values())
        shares = ("text/grammatical_frac", "text/distinct_frac", "text/kl", "text/kl_coef")
        assert set(shares) < set(metrics)
        assert ("ppo/no_signal_frac" in metrics) == (strategy == "critic_free")
        assert ("losses/value_loss" in metrics) == (strategy != "critic_free")
    assert [len(record.samples) for _, record in records] == [8, 8, 0]
    text, reward = records[0][1].samples[0]
    assert trainer.env._task.rewards([text]) == [reward]


def test_a_parked_reference_crosses_the_bus_once_an_iteration():
    """And changes no number."""
    moved, ends = [], []
    for place in Place:
        config = text_config("memory=parked", f"memory.reference_place={place.value}")
        trainer, _ = trained([config], 1)
        before = dataclasses.replace(trainer.placement.traffic)
        trainer.iterate()
        moved.append(trainer.placement.traffic.since(before))
        ends.append(weights(trainer))
    num_bytes = sum(4 * weight.numel() for weight in trainer.reference.weights())
    host, device = moved
    assert host.h2d_bytes - device.h2d_bytes == num_bytes
    assert host.d2h_bytes == device.d2h_bytes
    assert torch.equal(*ends)


def test_only_memory_parked_parks_it_by_default():
    places = {name: text_config(f"memory={name}").memory.reference_place for name in STRATEGIES}
    assert [name for name, place in places.items() if place is Place.host] == ["parked"]


@pytest.mark.parametrize(
    "option", ["memory.num_micro_batches=2", "memory.checkpoint_activations=true"]
)
def test_memory_options_change_no_number(option):
    base = ("dtype=float64", "network.depth=3", "env.pretrain_steps=1", "num_epochs=1")
    plain, optioned = (trained([text_config(*base, *more)], 2)[0] for more in ((), (option,)))
    torch.testing.assert_close(weights(plain), weights(optioned), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("memory", ["co_resident", "critic_free"])
def test_a_lane_equals_itself_alone(memory):
    overrides = (f"memory={memory}", "dtype=float64", "env.kl_target=0.1", "num_epochs=1")
    configs = lanes_of(text_config(*overrides), {"seed": 1}, {"seed": 2, "lr": 1e-2})
    stack, records = trained(configs, 3)
    for lane, config in enumerate(configs):
        alone, its_records = trained([config], 3)
        torch.testing.assert_close(weights(stack, lane), weights(alone), atol=1e-9, rtol=1e-7)
        texts = [record.samples for number, record in records if number == lane]
        assert texts == [record.samples for _, record in its_records]


def test_a_run_that_goes_on_is_as_if_it_had_never_stopped():
    base = text_config("env.kl_target=0.05", "lr=0.01", "lr_schedule=linear")
    whole, records = trained([base], 4)
    half, first = trained([base], 2)
    state = half.lane_state(0)
    rest = []
    other = Trainer([base], lambda *record: rest.append(record))
    other.load_lane_state(0, state)
    for _ in range(2):
        other.iterate()
    assert numbers_in(first + rest) == numbers_in(records)
    assert torch.equal(weights(whole), weights(other))
    assert records[3][1].metrics["text/kl_coef"] != pytest.approx(0.3, rel=1e-6)


def test_a_run_that_goes_on_with_another_reference_says_so(caplog):
    state = trained([text_config()], 1)[0].lane_state(0)
    trainer = Trainer([text_config("env.pretrain_seed=7")])
    with caplog.at_level(logging.WARNING):
        Trainer([text_config()]).load_lane_state(0, state)
        assert not caplog.text
        trainer.load_lane_state(0, state)
    assert "goes on with another reference" in caplog.text


def test_without_a_coefficient_there_is_no_reference():
    trainer, records = trained([text_config("env.kl_coef=0")], 1)
    assert trainer.reference is None
    assert "text/kl" not in records[0][1].metrics
    with pytest.raises(ConfigError, match=r"env\.kl_target=1\.0"):
        text_config("env.kl_coef=0", "env.kl_target=1.0").check_env()


@pytest.mark.parametrize(
    ("baseline", "over"),
    [
        ("gae", "minibatch"),
        ("per_step", "minibatch"),
        ("grpo", "none"),
        ("dr_grpo", "none"),
        ("rloo", "none"),
        ("reinforce_pp", "none"),
    ],
)
def test_only_baselines_that_leave_it_to_the_update_are_normalized(baseline, over):
    memory = "co_resident" if baseline == "gae" else "critic_free"
    config = text_config(f"memory={memory}", f"baseline={baseline}")
    assert config.advantage_normalization is AdvantageNormalization[over]
    asked = text_config(
        f"memory={memory}", f"baseline={baseline}", "advantage_normalization=rollout"
    )
    assert asked.advantage_normalization is AdvantageNormalization.rollout
