"""Contracts over every YAML that ships."""

import dataclasses

import pytest
import yaml

from ppo_lab.config.compose import check_jobs, load
from ppo_lab.config.lanes import LANE_KEYS
from ppo_lab.config.run import Config
from ppo_lab.memory import STRATEGIES
from ppo_lab.networks import NETWORKS
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.paths import CONF_DIR, SWEEPS_DIR
from tests.helpers.trainers import default_composer

GROUPS = ("env", "network", "memory", "tracking")
OPTIONS = [
    (group, path.stem) for group in GROUPS for path in sorted((CONF_DIR / group).glob("*.yaml"))
]


def composed(*overrides: str) -> Config:
    return load(default_composer().run(overrides))


FOR_TOKENS = [option for group, option in OPTIONS if option.startswith("gpt_")]


@pytest.mark.parametrize("option", FOR_TOKENS)
def test_a_network_for_tokens_is_refused_by_an_environment_of_numbers(option):
    with pytest.raises(ConfigError, match=r"^network=TransformerConfig: reads tokens, not numbers"):
        composed(f"network={option}")


NEED_MORE = [*FOR_TOKENS, "hf"]  # hf needs a folder: tests/networks/test_hf.py


@pytest.mark.parametrize(("group", "option"), [o for o in OPTIONS if o[1] not in NEED_MORE])
def test_every_option_composes_into_a_checked_config(group, option):
    extra = ["env.id=CartPole-v1"] if (group, option) == ("env", "gymnasium") else []
    assert isinstance(composed(f"{group}={option}", *extra), Config)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_says_when_to_choose_it(group, option):
    lines = (CONF_DIR / group / f"{option}.yaml").read_text().splitlines()
    comments = [line for line in lines if line.startswith("#") and "@package" not in line]
    assert comments
    assert len(comments[0]) > 30


def test_every_strategy_and_network_kind_has_a_yaml():
    strategies = {path.stem for path in (CONF_DIR / "memory").glob("*.yaml")}
    assert strategies == {"auto", *STRATEGIES}
    used = set()
    for path in (CONF_DIR / "network").glob("*.yaml"):
        (schema, _) = yaml.safe_load(path.read_text())["defaults"]
        used.add(schema.removeprefix("schema/").removesuffix("@_here_"))
    assert used == set(NETWORKS)


def test_the_default_run_is_cartpole_small_co_resident_at_0_2():
    config = composed()
    assert config.env.id == "CartPole-v1"
    assert config.network.hidden == [256, 256]
    assert config.memory.name == "co_resident"
    assert config.epsilon == 0.2


def test_an_environment_brings_its_hyperparameters_and_the_command_line_wins():
    # conf/env/halfcheetah.yaml: 10 epochs of 32 minibatches, both normalisations.
    config = composed("env=halfcheetah")
    assert (config.num_epochs, config.num_minibatches) == (10, 32)
    assert config.env.normalize_observations
    assert config.env.normalize_rewards
    assert composed("env=halfcheetah", "num_epochs=3").num_epochs == 3
    assert composed("num_epochs=3", "env=halfcheetah").num_epochs == 3


def test_epsilon_none_means_no_clip_and_a_whole_number_is_a_number():
    assert composed("epsilon=none").epsilon is None
    assert composed("epsilon=null").epsilon is None
    assert composed("epsilon=2").epsilon == 2.0
    assert composed("epsilon=1e-2").epsilon == 0.01


def test_a_free_form_network_is_taken():
    assert composed("network.hidden=[8,9]").network.hidden == [8, 9]


def test_lane_keys_are_keys():
    assert {field.name for field in dataclasses.fields(Config)} >= LANE_KEYS


def test_a_grid_expands_as_hydra_will_run_it():
    jobs = check_jobs(["epsilon=0.1,none", "seed=range(1,3)", "network=tiny"], is_multirun=True)
    found = [(job.config.epsilon, job.config.seed) for job in jobs]
    assert found == [(0.1, 1), (0.1, 2), (None, 1), (None, 2)]


def test_a_folder_of_the_users_own_yaml_is_searched(tmp_path):
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "mine.yaml").write_text(
        "defaults:\n  - schema/mlp@_here_\n  - _self_\nhidden: [5]\n"
    )
    (job,) = check_jobs(["network=mine"], config_dir=str(tmp_path))
    assert job.config.network.hidden == [5]


def test_yaml_lives_beside_the_package_in_a_checkout():
    assert (CONF_DIR / "config.yaml").is_file()
    assert SWEEPS_DIR.is_dir()


def test_a_primary_config_of_the_users_own_may_build_on_ours(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults:\n  - config\n  - _self_\nepsilon: 0.3\n")
    (job,) = check_jobs([], config_dir=str(tmp_path), config_name="mine")
    assert job.config.epsilon == 0.3


def test_a_searchpath_holds_for_every_job_of_a_grid(tmp_path):
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "mine.yaml").write_text(
        "defaults:\n  - schema/mlp@_here_\n  - _self_\nhidden: [5]\n"
    )
    words = [f"hydra.searchpath=[file://{tmp_path}]", "network=mine,tiny"]
    jobs = check_jobs(words, is_multirun=True)
    assert [job.config.network.hidden for job in jobs] == [[5], [64, 64]]
