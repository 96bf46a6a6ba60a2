"""TextEnv: prompts, the mechanics of an episode, rewards of whole texts, lanes."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ppo_lab.devices.placement import Placement
from ppo_lab.envs.text.config import TextConfig, TextTaskName
from ppo_lab.utils.errors import EnvironmentFault
from ppo_lab.utils.rng import Stream, lane_keys

MINE = "tests.envs.text.user_rewards"
ARITHMETIC = TextConfig(task=TextTaskName.arithmetic)
PAD, END = 0, 2


def build(config=None, *, seeds=(1, 2), num_envs=4, num_steps=12, **options):
    return (config or TextConfig()).build(
        seeds=torch.tensor(seeds),
        num_envs=num_envs,
        gamma=torch.ones(len(seeds)),
        placement=Placement(torch.device("cpu")),
        num_steps=num_steps,
        **options,
    )


def keys_of(*seeds):
    return lane_keys(torch.tensor(seeds), Stream.ENV)


def prompts_of(env, keys, group_size):
    """Return the prompts (L, N, …) of episodes that begin with ``keys``."""
    tokens = [env.begin_episodes(keys, group_size)[..., 0]]
    nothing = torch.full((env.num_lanes, env.num_envs), END)
    for _ in range(5):
        actions, is_given = env.given_actions(nothing)
        if is_given is None:
            break
        tokens.append(actions)
        env.step(actions)
    return torch.stack(tokens, -1)


def write(env, sentences, keys=None):
    """Let each environment of every lane write its sentence; return the steps."""
    encode = env._task.tokenizer.encode
    rows = [encode(text)[1:] for text in sentences]
    env.begin_episodes(keys_of(1, 2) if keys is None else keys, 1)
    steps = []
    for number in range(12):
        tokens = [row[number] if number < len(row) else 7 for row in rows]
        steps.append(env.step(torch.tensor([tokens] * env.num_lanes)))
    return steps


@pytest.mark.parametrize("config", [TextConfig(), ARITHMETIC], ids=["grammar", "arithmetic"])
def test_a_group_has_one_prompt_and_groups_differ(config):
    env = build(config, num_envs=64)
    prompts = prompts_of(env, keys_of(1, 2), 8).unflatten(1, (8, 8))  # (L, G, group, P)
    assert bool((prompts == prompts[:, :, :1]).all())
    for lane in prompts[:, :, 0]:
        assert len(lane.unique(dim=0)) > 1
    assert not torch.equal(prompts[0], prompts[1])


def test_prompts_depend_on_the_key_and_the_number_of_the_group_alone():
    env, other = build(ARITHMETIC, num_envs=32), build(ARITHMETIC, seeds=(9,), num_envs=16)
    groups = prompts_of(env, keys_of(1, 2), 8)
    assert torch.equal(prompts_of(env, keys_of(1, 2), 8), groups)
    assert not torch.equal(prompts_of(env, keys_of(1, 3), 8)[1], groups[1])
    alone = prompts_of(other, keys_of(2), 4)  # groups of another size, in another stack
    assert torch.equal(alone[0, ::4], groups[1, ::8])


def test_a_last_group_may_be_smaller():
    prompts = prompts_of(build(ARITHMETIC, num_envs=7), keys_of(1, 2), 3)
    assert torch.equal(prompts[:, 0], prompts[:, 2])
    assert prompts.shape[:2] == (2, 7)


def test_every_prompt_is_drawn_about_as_often_as_the_others():
    prompts = prompts_of(build(num_envs=4000, seeds=(1,)), keys_of(1), 1)
    _, counts = prompts[0].unique(dim=0, return_counts=True)
    assert len(counts) == 4
    # 1000 +- 4 deviations of 27
    assert bool(((counts - 1000).abs() < 110).all())


def test_given_actions_are_the_rest_of_the_prompt():
    env = build(ARITHMETIC)
    env.begin_episodes(keys_of(1, 2), 1)
    policy = torch.full((2, 4), 5)
    lengths, masks = torch.zeros(2, 4, dtype=torch.int64), []
    for _ in range(8):
        actions, is_given = env.given_actions(policy)
        if is_given is None:
            assert actions is policy
            is_given = torch.zeros(2, 4, dtype=torch.bool)
        assert bool((actions == policy)[~is_given].all())
        lengths += is_given
        masks.append(is_given)
        env.step(actions)
    assert bool((torch.stack(masks).long().diff(dim=0) <= 0).all())  # no gap
    rewards = env.final_rewards()
    for lane in range(2):
        for text, length in zip(env.samples(lane, 4), lengths[lane], strict=True):
            assert text.index("=") == length - 1
    assert rewards.shape == (2, 4)


def test_an_episode_ends_with_the_end_or_the_last_step_and_then_is_dead():
    env = build(seeds=(1,), num_envs=3)
    sentences = ["the pony .", "the pony greets a robot .", " ".join(["the"] * 12)]
    steps = write(env, sentences, keys_of(1))
    terminated = torch.stack([step.terminated[0] for step in steps], -1)  # (N, T)
    assert terminated.nonzero().tolist() == [[0, 2], [1, 5], [2, 11]]
    assert not any(bool(step.truncated.any() or step.rewards.any()) for step in steps)
    last = torch.stack([step.last_observations[0, :, 0] for step in steps], -1)
    observed = torch.stack([step.observations[0, :, 0] for step in steps], -1)
    assert last[0].tolist() == env._task.tokenizer.encode(sentences[0])[1:] + [PAD] * 9
    assert last[2].tolist() == [3] * 12
    # The next observation is padding from the end on, the true last one is the end itself.
    assert torch.equal(observed, last.masked_fill(terminated, PAD))
    with pytest.raises(AssertionError):
        env.step(torch.zeros(1, 3, dtype=torch.int64))


def test_rewards_and_metrics_are_those_of_the_whole_texts():
    env = build(num_envs=3)
    assert (env.text_metrics(), env.samples(0, 3)) == ({}, [])
    sentences = [
        "the lovely pony greets a clever robot .",
        "the rude pony .",
        "a pony greets a robot .",
    ]
    write(env, sentences)
    assert env.final_rewards().tolist() == [[1.0, -0.5, 0.0]] * 2
    # First tokens are <bos>; 8, 4 and 6 follow it.
    expected = {
        "reward_mean": 0.5 / 3,
        "length_mean": 6.0,
        "grammatical_frac": 2 / 3,
        "distinct_frac": 1.0,
    }
    for name, values in env.text_metrics().items():
        assert values.tolist() == pytest.approx([expected.pop(name)] * 2)
    assert not expected
    assert env.samples(1, 2) == sentences[:2]


def test_a_token_for_padding_is_a_word_like_others_if_the_policy_writes_it():
    env = build(seeds=(1,), num_envs=1)
    write(env, ["the <pad> pony greets a robot ."], keys_of(1))
    env.final_rewards()
    assert env.samples(0, 1) == ["the <pad> pony greets a robot ."]
    assert env.text_metrics()["grammatical_frac"].tolist() == [0.0]


def test_tokens_go_to_the_host_once_a_rollout_and_rewards_come_back():
    env = build(num_envs=3)
    traffic = env._placement.traffic
    before = traffic.h2d_bytes, traffic.d2h_bytes
    write(env, ["the .", "the .", "the ."])
    assert (traffic.h2d_bytes, traffic.d2h_bytes) == before
    env.final_rewards()
    moved = traffic.h2d_bytes - before[0], traffic.d2h_bytes - before[1]
    assert moved == (2 * 3 * 4, 2 * 3 * 13 * 8)


def test_a_lane_in_a_stack_equals_the_same_lane_alone():
    keys, generator = keys_of(5, 6), torch.Generator().manual_seed(0)
    actions = torch.randint(41, (12, 2, 4), generator=generator)

    def play(env, keys, actions):
        first = env.begin_episodes(keys, 2)
        steps = [env.step(env.given_actions(action)[0]) for action in actions]
        observations = torch.stack([first, *(step.observations for step in steps)])
        return observations, env.final_rewards(), env.samples(0, 4), env.text_metrics()

    both = play(build(), keys, actions)
    for lane in range(2):
        env = build(seeds=(7,))
        alone = play(env, keys[lane : lane + 1], actions[:, lane : lane + 1])
        assert torch.equal(alone[0][:, 0], both[0][:, lane])
        assert torch.equal(alone[1][0], both[1][lane])
        for name, values in alone[3].items():
            assert values[0] == both[3][name][lane]
    assert alone[2] != both[2]  # lanes differ


def test_a_users_reward_is_called_with_each_lanes_texts():
    env = build(TextConfig(reward=f"{MINE}:length"), num_envs=2, dtype=torch.float64)
    write(env, ["the pony .", "the ."])
    assert env.final_rewards().tolist() == [[1.0, 0.5]] * 2
    assert env.final_rewards().dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "told", "lane"),
    [
        ("fails_later", r"environment 0, env.reward: ValueError: too many texts \(tests/.*py:", 0),
        ("short", "env.reward: returned 3 numbers for 4 texts", 0),
        ("nan_for_friendly", "env.reward: returned nan for 'the friendly .'", 1),
    ],
)
def test_a_users_reward_that_goes_wrong_is_a_fault_of_its_lane(name, told, lane):
    env = build(TextConfig(reward=f"{MINE}:{name}"))
    env.begin_episodes(keys_of(1, 2), 1)
    friendly = env._task.tokenizer.encode("the friendly .")[1:]
    for token in [*friendly, *[PAD] * 9]:
        actions = torch.full((2, 4), END)
        actions[1] = token
        env.step(actions)
    with pytest.raises(EnvironmentFault, match=told) as fault:
        env.final_rewards()
    assert fault.value.lane == lane


def test_a_lane_that_is_reset_begins_as_if_built_with_its_seed():
    env, fresh = build(ARITHMETIC), build(ARITHMETIC, seeds=(1, 5))
    env.reset()
    observations = env.reset_lane(1, 5)
    assert torch.equal(observations, fresh.reset())
    assert torch.equal(env._prompts, fresh._prompts)
    assert (env.state_mode, env.lane_state(0)) == ("exact", ({}, {}))


def test_a_dry_environment_has_shapes_and_traffic_but_reads_no_values():
    real = build()
    write(real, ["the ."] * 4)
    real.final_rewards()
    with FakeTensorMode():
        dry = build(is_dry=True)
        first = dry.begin_episodes(torch.zeros(2, dtype=torch.int64), 2)
        step = dry.step(dry.given_actions(torch.zeros(2, 4, dtype=torch.int64))[0])
        rewards = dry.final_rewards()
    assert (first.shape, first.dtype) == ((2, 4, 1), torch.int64)
    assert step.observations.shape == step.last_observations.shape == (2, 4, 1)
    assert (rewards.shape, rewards.dtype) == ((2, 4), torch.float32)
    assert dry._placement.traffic == real._placement.traffic
    assert (dry.text_metrics(), dry.samples(0, 1)) == ({}, [])
