"""A job composed from another one's files is what Hydra itself would compose."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ppo_lab.config.compose import ComposeCache, check_jobs, register
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.paths import CONF_DIR


@pytest.fixture
def hydras_own():
    """Composes as Hydra does; counts in ``calls``."""
    register()
    calls = []

    def composed(typed):
        calls.append(typed)
        return compose("config", overrides=typed, return_hydra_config=True)

    composed.calls = calls
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        yield composed


@pytest.mark.parametrize(
    "typed",
    [
        ["seed=1", "epsilon=none"],
        ["env=pendulum", "seed=1", "lr=0.01", "memory=shared_trunk"],
        ["env=gymnasium", "env.id=CartPole-v1", "+env.kwargs.x=1", "seed=4", "env.kwargs.x=3"],
        ["network=small", "network.hidden=[32,16]", "name=abc", "tracking.tags=[a,b]"],
        ["hydra.job.name=other", "seed=2"],
        [],
    ],
)
def test_values_on_top_of_files_are_what_hydra_makes_of_both(hydras_own, typed):
    loader = GlobalHydra.instance().config_loader()
    variants = ComposeCache(loader, hydras_own)
    variants.compose([*typed, "total_steps=4096"])  # another job of the same files
    found, expected = variants.compose(typed), hydras_own(typed)
    assert found.hydra.overrides.task == expected.hydra.overrides.task
    assert sorted(found.hydra.overrides.hydra) == sorted(expected.hydra.overrides.hydra)
    assert found.hydra.job.override_dirname == expected.hydra.job.override_dirname
    assert found.hydra.runtime.choices == expected.hydra.runtime.choices
    ours = [key for key in expected if key != "hydra"]
    assert {key: found[key] for key in ours} == {key: expected[key] for key in ours}


def test_files_are_read_once_for_each_choice_of_them(hydras_own):
    variants = ComposeCache(GlobalHydra.instance().config_loader(), hydras_own)
    seeds = [
        variants.compose([f"network={network}", f"seed={seed}"]).seed
        for network in ("tiny", "small")
        for seed in range(5)
    ]
    assert seeds == [*range(5), *range(5)]
    assert hydras_own.calls == [["network=tiny"], ["network=small"]]


def test_one_job_does_not_see_what_another_was_given(hydras_own):
    variants = ComposeCache(GlobalHydra.instance().config_loader(), hydras_own)
    variants.compose(["network.hidden=[7]", "epsilon=0.4"])
    plain = variants.compose([])
    assert plain.network == hydras_own([]).network
    assert plain.epsilon == 0.2


def test_a_value_that_cannot_be_is_refused_as_ever():
    register()
    with pytest.raises(ConfigError, match=r"^num_minibatches=3"):
        check_jobs(
            ["num_minibatches=4,3", "tracking=local"],
            is_multirun=True, config_dir=None, config_name=None,
        )  # fmt: skip
