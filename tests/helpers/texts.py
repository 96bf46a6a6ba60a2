"""Runs on texts that are small enough for tests."""

from __future__ import annotations

import functools

from ppo_lab.config.compose import load
from ppo_lab.config.run import Config
from tests.helpers.trainers import default_composer

_MICRO = (
    *("env=text", "network.depth=1", "network.width=16", "network.num_heads=2"),
    *("num_envs=8", "num_steps=10", "num_epochs=2", "num_minibatches=2", "total_steps=10_000"),
    *("env.pretrain_steps=30", "env.pretrain_batch=16"),
    *("tracking=local", "device=cpu", "compile=never"),
)


@functools.cache
def text_config(*overrides: str) -> Config:
    """Return the config of a run on short sentences with a transformer of 7,000 parameters."""
    words = {word.partition("=")[0]: word for word in (*_MICRO, *overrides)}
    return load(default_composer().run([*words.values()]))
