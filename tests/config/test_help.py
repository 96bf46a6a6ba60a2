"""``--help``: every key of the config, with its meaning, without importing the config."""

import dataclasses

import pytest

from ppo_lab.config import help as texts
from ppo_lab.config.compose import known_keys, register
from ppo_lab.config.run import Config
from ppo_lab.envs.text.config import TextConfig
from ppo_lab.memory import STRATEGIES
from ppo_lab.networks import NETWORKS
from ppo_lab.ppo.baselines import BASELINES
from ppo_lab.utils.errors import ConfigError

KEYS = {key.name: key for key in texts.keys()}  # noqa: SIM118 - a function


def options_of(prefix, kinds):
    return {f"{prefix}.{field.name}" for kind in kinds for field in dataclasses.fields(kind)}


def test_every_key_is_there_and_no_other():
    register()
    groups = {"env", "network", "memory", "tracking", "baseline", "checkpoint", "study"}
    known = known_keys() | options_of("env", [TextConfig])
    known |= options_of("network", NETWORKS.values()) | options_of("memory", STRATEGIES.values())
    known |= options_of("baseline", BASELINES.values())
    known |= {"study.confirm.top", "study.confirm.seeds"}
    assert set(KEYS) == known - groups - {"study.confirm"}


def test_every_key_has_a_meaning_and_a_section():
    assert [key.name for key in texts.keys() if not key.meaning or not key.section] == []  # noqa: SIM118
    assert KEYS["epsilon"].section == "Clip and policy loss"
    assert KEYS["lr"].section == "Optimizer"


def test_defaults_types_and_ranges_are_those_of_the_config():
    assert KEYS["epsilon"].default == "0.2"
    assert KEYS["epsilon"].allowed == "number > 0 or none"
    assert KEYS["gamma"].allowed == "number >= 0 and <= 1"
    assert KEYS["num_epochs"].allowed == "whole number >= 1"
    assert KEYS["dtype"].allowed == "float32, float64, bfloat16"
    assert KEYS["network.hidden"].default == "32"  # of lstm and gru, after the MLP's
    assert KEYS["env.id"].default == "text"
    assert KEYS["study.confirm.seeds"].allowed == "whole number >= 2 and <= 1000"
    for field in dataclasses.fields(Config):
        if isinstance(field.default, bool | int | float):
            shown = KEYS[field.name].default
            assert float({"true": 1, "false": 0}.get(shown, shown)) == field.default


def test_no_line_is_wider_than_the_screen():
    lines = texts.help_text([], 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert "  epsilon=0.2  (number > 0 or none)" in lines


def test_a_topic_is_a_key_a_group_or_what_is_meant():
    assert texts.help_text(["lr"]).count("=") == 1
    memory = texts.help_text(["memory"], 100)
    assert "memory=parked\n" in memory
    assert "memory.pin_memory=true" in memory
    with pytest.raises(ConfigError, match="did you mean epsilon"):
        texts.help_text(["epslon"])
    with pytest.raises(ConfigError, match="write epsilon"):
        texts.help_text(["clip_coef"])


@pytest.mark.parametrize(
    ("words", "topics"),
    [(["--help"], []), (["-h", "lr", "memory"], ["lr", "memory"]), (["lr=1"], None),
     (["--help", "env=hopper"], None), (["--help", "--config-dir", "x"], None)],
)  # fmt: skip
def test_help_with_overrides_or_files_is_hydras(words, topics):
    assert texts.help_topics(words) == topics
