"""A run that goes on from a lane's state equals one that was never interrupted, bit by bit."""

import dataclasses

import pytest
import torch

from ppo_lab.config.checkpoint import CheckpointConfig
from ppo_lab.config.choices import Schedule
from ppo_lab.memory import STRATEGIES
from ppo_lab.training.checkpoint import LaneState
from ppo_lab.training.trainer import Trainer
from tests.helpers import clock_env  # noqa: F401 - registers Clock-v0
from tests.helpers.host_capturer import HostCapturer
from tests.helpers.trainers import config, state_of, weights

SIZES = ("num_envs=4", "num_steps=16", "num_epochs=2", "num_minibatches=2", "total_steps=640")
NORMALISED = ("env.normalize_observations=true", "env.normalize_rewards=true")
SMALL_TEXT = (
    *("network=gpt_tiny", "network.width=16", "network.num_heads=2", "env.pretrain_steps=0"),
    *("network.depth=1", "num_envs=8"),
)
ENVS = {
    "native": ("env=pendulum", "env.max_episode_steps=25"),
    "normalised": ("env=pendulum", "env.max_episode_steps=25", *NORMALISED),
    "gymnasium": ("env=gymnasium", "env.id=CartPole-v1", "env.max_episode_steps=25"),
    "unreadable": ("env=gymnasium", "env.id=Clock-v0", "env.max_episode_steps=16", *NORMALISED),
    "recurrent": (
        *("env=cartpole_masked", "network=lstm", "network.hidden=8", "env.max_episode_steps=25"),
    ),
    "text": ("env=text", *SMALL_TEXT, "env.kl_target=1"),
}
TIMES = ("time/", "perf/", "charts/SPS")


def base_of(kind, strategy="co_resident"):
    """Return a config whose environments restart after iterations 2, 4, … if they have to."""
    return dataclasses.replace(
        config(*SIZES, *ENVS[kind], f"memory={strategy}"),
        checkpoint=CheckpointConfig(boundary_steps=128),
        lr_schedule=Schedule.linear,
        epsilon_schedule=Schedule.linear,
    )


def trained(configs, num_iterations, *, compiles=False):
    """Return a trainer after some iterations, and the list to which it adds its records."""
    records = []
    trainer = Trainer(configs, lambda *record: records.append(record), compiles=compiles)
    for _ in range(num_iterations):
        trainer.iterate()
    return trainer, records


def numbers_in(records):
    """Return what records say, but for measured times; NaN as text, which equals itself."""
    return [
        (
            *(lane, record.global_step, record.iteration, str(record.histograms)),
            *((n, str(v)) for n, v in record.metrics.items() if not n.startswith(TIMES)),
        )
        for lane, record in records
    ]


def check_equal(trainer, records, other, its_records):
    assert numbers_in(records) == numbers_in(its_records)
    for lane in range(len(trainer.configs)):
        assert torch.equal(weights(trainer, lane), weights(other, lane))
        assert trainer.history(lane) == other.history(lane)
    mine, its = (state_of(t.optimizer) for t in (trainer, other))
    assert all(map(torch.equal, mine, its))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ENVS)
def test_a_resumed_run_is_the_undisturbed_run(kind, strategy):
    base = base_of(kind, strategy)
    whole, records = trained([base], 2)
    state = whole.lane_state(0)
    resumed, its_records = trained([base], 0)
    resumed.load_lane_state(0, state)
    assert resumed.lane_iteration(0) == 2
    records.clear()
    for trainer in (whole, resumed):
        for _ in range(3):
            trainer.iterate()
    assert records
    check_equal(whole, records, resumed, its_records)


@pytest.mark.parametrize("strategy", ["co_resident", "critic_free"])
@pytest.mark.parametrize("kind", ENVS)
def test_lanes_of_different_ages_go_on_in_a_new_stack(kind, strategy):
    configs = [dataclasses.replace(base_of(kind, strategy), seed=seed) for seed in (1, 2, 3)]
    whole, records = trained(configs, 2)
    whole.replace_lanes({1: dataclasses.replace(configs[1], seed=9, lr=1e-3)})
    for _ in range(2):
        whole.iterate()
    states = [whole.lane_state(lane) for lane in range(3)]
    assert [state.numbers["iteration"] for state in states] == [4, 2, 4]
    resumed, its_records = trained(whole.configs, 1)  # an iteration that none of the lanes keeps
    for lane, state in enumerate(states):
        resumed.load_lane_state(lane, state)
    records.clear(), its_records.clear()
    for trainer in (whole, resumed):
        for _ in range(3):
            trainer.iterate()
    check_equal(whole, records, resumed, its_records)


def part_of(name):
    """Return the part of a state that a tensor belongs to: all weights are one part."""
    area, _, rest = name.partition(".")
    if area == "model":
        return area
    return f"{area}.{rest.rpartition('.')[2]}" if area == "optimizer" else name


@pytest.fixture(scope="module")
def interrupted():
    """Return a config, its state after three iterations, and a trainer after another two."""
    base = base_of("normalised")
    whole, records = trained([base], 3)
    state = whole.lane_state(0)
    records.clear()
    for _ in range(2):
        whole.iterate()
    return base, state, whole, records


PARTS = {
    "model", "optimizer.exp_avg", "optimizer.exp_avg_sq", "optimizer.0", "env.observations",
    "env.state", "env.deadlines", "env.normalizer.mean", "env.normalizer.var",
    "env.normalizer.count", "env.normalizer.latest", "episodes.return", "episodes.length",
    "history.steps", "history.returns", "history.kls", "history.last",
}  # fmt: skip
NUMBERS = {"iteration": 2, "num_episodes": 0, "env": {"steps": 47}}


def test_the_list_of_parts_is_complete(interrupted):
    state = interrupted[1]
    # Discounted returns are among the latest samples; the environments' key is that of the seed,
    # which another lane of the same config has, too; a Gaussian's entropy has no maximum.
    parts = set(map(part_of, state.tensors)) - {"env.key", "history.entropy_fracs"}
    assert parts == PARTS
    assert set(state.numbers) == {*NUMBERS, "is_compiled", "env_mode"}


@pytest.mark.parametrize("dropped", [*sorted(PARTS), *NUMBERS])
def test_without_any_one_part_the_numbers_differ(interrupted, dropped):
    base, state, whole, records = interrupted
    resumed, its_records = trained([base], 0)
    fresh = resumed.lane_state(0).tensors
    tensors = {n: fresh[n] if part_of(n) == dropped else t for n, t in state.tensors.items()}
    numbers = state.numbers | {n: value for n, value in NUMBERS.items() if n == dropped}
    resumed.load_lane_state(0, LaneState(tensors, numbers))
    for _ in range(2):
        resumed.iterate()
    is_equal = numbers_in(records) == numbers_in(its_records)
    assert not (is_equal and whole.history(0) == resumed.history(0))


@pytest.mark.parametrize(
    ("kind", "dropped"),
    [
        ("recurrent", "env.actor_memory.0"),
        ("recurrent", "env.actor_memory.1"),
        ("recurrent", "env.critic_memory.0"),
        ("recurrent", "env.critic_memory.1"),
        ("recurrent", "env.starts"),
        ("text", "reference.kl_coef"),
    ],
)
def test_without_what_a_sequence_policy_adds_the_numbers_differ(kind, dropped):
    whole, records = trained([base_of(kind)], 3)
    state = whole.lane_state(0)
    resumed, its_records = trained([base_of(kind)], 0)
    fresh = resumed.lane_state(0).tensors[dropped]
    resumed.load_lane_state(0, LaneState({**state.tensors, dropped: fresh}, state.numbers))
    records.clear()
    for trainer in (whole, resumed):
        trainer.iterate()
    assert numbers_in(records) != numbers_in(its_records)


@pytest.mark.parametrize("kind", ["native", "normalised"])
def test_a_compiled_run_goes_on_compiled(kind):
    """As captured graphs, whose memory is fixed: a tensor that is not in its place is missed."""
    configs = [dataclasses.replace(base_of(kind), seed=seed) for seed in (1, 2)]
    trainers = []
    for compiles in (True, False):  # the state decides, not how the next stack was built
        trainer, records = trained(configs, 0, compiles=compiles)
        trainer._compilation.capturer = HostCapturer()
        trainers.append((trainer, records))
    (whole, records), (resumed, its_records) = trainers
    for _ in range(3):
        whole.iterate()
    assert whole._compilation.is_compiled
    states = [whole.lane_state(lane) for lane in range(2)]
    for _ in range(2):  # loading once more, into graphs that have run already
        for lane, state in enumerate(states):
            assert state.numbers["is_compiled"]
            resumed.load_lane_state(lane, state)
        records.clear(), its_records.clear()
        for _ in range(2):
            resumed.iterate()
        assert resumed._compilation.is_compiled
    for _ in range(2):
        whole.iterate()
    check_equal(whole, records, resumed, its_records)


def test_a_run_that_was_not_compiled_goes_on_like_that():
    base = base_of("native")
    state = trained([base], 1)[0].lane_state(0)
    resumed, _ = trained([base], 0, compiles=True)
    resumed._compilation.capturer = HostCapturer()
    resumed.load_lane_state(0, state)
    for _ in range(2):
        resumed.iterate()
    assert not resumed._compilation.is_compiled
    compiled, _ = trained([base], 0, compiles=True)
    compiled._compilation.capturer = HostCapturer()
    for _ in range(2):
        compiled.iterate()
    with pytest.raises(ValueError, match="the run was not compiled, but this stack is"):
        compiled.load_lane_state(0, state)


def test_environments_without_a_readable_state_restart_at_boundaries_only():
    base = dataclasses.replace(
        base_of("unreadable"), num_steps=15, checkpoint=CheckpointConfig(boundary_steps=120)
    )
    trainer, records = trained([base, dataclasses.replace(base, seed=2)], 0)
    restarts = []
    reset_lane = trainer.env.reset_lane
    trainer.env.reset_lane = lambda *args, **_: restarts.append(args) or reset_lane(*args, **_)
    has_state = []
    for _ in range(5):
        has_state.append(trainer.has_state(0))
        trainer.iterate()
    assert has_state == [False, False, True, False, True]  # before iterations 3 and 5
    assert [lane for lane, _ in restarts] == [0, 1, 0, 1]
    assert len({seed for _, seed in restarts}) == 4
    assert all(0 <= seed < 2**63 for _, seed in restarts)
    # Clock's episodes have 3, 1 and 4 steps, then again. From a start, five end within 15 steps,
    # on average after 12 / 5. The sixth is under way: six end in the second iteration.
    lengths = [record.metrics["charts/episodic_length"] for lane, record in records if lane == 0]
    assert lengths == pytest.approx([2.4, 16 / 6, 2.4, 16 / 6, 2.4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, n: t.pop("model.value_head.bias"), "it has no 'model.value_head.bias'"),
        (lambda t, n: t.update({"model.value_head.bias": torch.zeros(2)}), "bias has shape"),
        (lambda t, n: t.update({"episodes.return": torch.zeros(4)}), "return has dtype"),
        (lambda t, n: n.update(env_mode="boundary"), "boundary environments, these are exact"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_with_the_reason(change, message):
    trainer, _ = trained([base_of("native")], 0)
    state = trainer.lane_state(0)
    change(state.tensors, state.numbers)
    with pytest.raises(ValueError, match=message):
        trainer.load_lane_state(0, state)
