"""What tests of libraries and of CUDA graphs share: pairs of trainers that must agree."""

import dataclasses

import torch

from ppo_lab.compiler.compiled import flatten
from ppo_lab.config.choices import Compile
from ppo_lab.ppo.rollout import lane_rows
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import config, lanes_of, largest_difference

SMALL = ("compile=always", "num_envs=4", "num_steps=16", "num_epochs=5", "num_minibatches=4")
KINDS = {
    "cartpole": (),
    "shared trunk": ("memory=shared_trunk",),
    "two norms": ("separate_grad_clip=true",),
    "gymnasium": ("env=pendulum", "env.backend=gymnasium"),
    "normalised": ("env=pendulum", "env.normalize_observations=true"),
    "normalised rewards": ("env=pendulum", "env.normalize_rewards=true"),
    "normalised gymnasium": (
        "env=pendulum", "env.backend=gymnasium", "env.max_episode_steps=7",
        "env.normalize_observations=true", "env.normalize_rewards=true",
    ),
    "every option": ("target_kl=0.01", "dual_clip=3", "value_epsilon=0.2", "epsilon_high=0.3"),
    "rollout's own statistics": ("advantage_normalization=rollout",),
}  # fmt: skip


def weights_of(trainer):
    return torch.cat([p.detach().flatten(1) for p in trainer.model.parameters()], -1)


def pair_of(*overrides, kind=Trainer):
    """Return two trainers of the same two lanes after an iteration, the first one compiled now.

    That one is of a ``kind``.
    """
    base = config(*SMALL, *overrides)
    changes = [{"seed": 1}, {"seed": 2, "epsilon": 0.05, "lr": 1e-3}]
    compiled = kind(lanes_of(base, *changes))
    plain = Trainer(lanes_of(dataclasses.replace(base, compile=Compile.never), *changes))
    for trainer in (compiled, plain):
        trainer.iterate()
    assert torch.equal(weights_of(compiled), weights_of(plain))
    compiled._compilation.compile(compiled._noise())
    assert compiled._compilation.is_compiled
    assert not plain._compilation.is_compiled
    return compiled, plain


def check_agreement(compiled, plain):
    pair = compiled, plain
    rollouts = [trainer.collect() for trainer in pair]
    for name, mine, its in zip(rollouts[0]._fields, *rollouts):
        if mine is None and its is None:  # what only whole episodes and sequences have
            continue
        assert mine.shape == its.shape, name
        assert mine.dtype == its.dtype, name
        assert largest_difference(mine.double(), its.double()) < 1e-5, name
    rows = lane_rows(rollouts[1], plain.advantages(rollouts[1]))
    before = weights_of(plain)
    mine, its = (trainer.update(rows) for trainer in pair)
    assert mine.gradient_steps.tolist() == its.gradient_steps.tolist()
    assert largest_difference(weights_of(compiled), weights_of(plain)) < 1e-6
    assert largest_difference(before, weights_of(plain)) > 1e-4
    for name, a, b in zip(mine._fields, mine, its):
        if a is not None:
            assert largest_difference(a.double(), b.double()) < 1e-4, name
    looks = [trainer.diagnose(rollouts[1], rows, its).after for trainer in pair]
    for mine_after, its_after in zip(*map(flatten, looks)):
        assert torch.allclose(mine_after, its_after, atol=1e-4, equal_nan=True)


def check_replacement(compiled, plain):
    """A lane that is replaced is trained as a fresh run."""
    fresh = dataclasses.replace(compiled.configs[1], seed=7, lr=5e-4)
    for trainer in (compiled, plain):
        trainer.iterate()
        trainer.replace_lanes({1: dataclasses.replace(fresh, compile=trainer.config.compile)})
        trainer.iterate()
    alone = Trainer([dataclasses.replace(fresh, compile=Compile.never)])
    alone.iterate()
    for trainer in (compiled, plain):
        assert largest_difference(weights_of(trainer)[1:], weights_of(alone)) < 1e-6
