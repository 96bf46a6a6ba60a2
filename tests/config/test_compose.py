"""A job composed from another one's files is what Hydra itself would compose."""

from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ppo_lab.config.compose import register
from ppo_lab.config.composer import Composer, GridLoader
from ppo_lab.utils.paths import CONF_DIR


@pytest.fixture
def hydra():
    """Hydra's own loader, a plain command, and what was composed from files, in ``calls``."""
    register()
    calls = []
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        command = compose("config", ["hydra.job.name=other"], return_hydra_config=True)
        hydras_own = loader.load_sweep_config

        def composed(master, typed):
            calls.append(typed)
            return hydras_own(master, typed)

        loader.load_sweep_config = composed
        yield SimpleNamespace(loader=loader, command=command, compose=hydras_own, calls=calls)


@pytest.mark.parametrize(
    "typed",
    [
        ["seed=1", "epsilon=none"],
        ["env=pendulum", "seed=1", "lr=0.01", "memory=shared_trunk"],
        ["env=gymnasium", "env.id=CartPole-v1", "+env.kwargs.x=1", "seed=4", "env.kwargs.x=3"],
        ["network=small", "network.hidden=[32,16]", "name=abc", "tracking.tags=[a,b]"],
        [],
    ],
)
def test_values_on_top_of_files_are_what_hydra_makes_of_both(hydra, typed):
    composer = Composer(hydra.loader, hydra.command)
    composer.job([*typed, "total_steps=4096"])  # another job of the same files
    found, expected = composer.job(typed), hydra.compose(hydra.command, typed)
    assert found.hydra.job.name == "other"
    assert found.hydra.overrides.task == expected.hydra.overrides.task
    assert sorted(found.hydra.overrides.hydra) == sorted(expected.hydra.overrides.hydra)
    assert found.hydra.job.override_dirname == expected.hydra.job.override_dirname
    assert found.hydra.runtime.choices == expected.hydra.runtime.choices
    ours = {key: expected[key] for key in expected if key != "hydra"}
    assert {key: found[key] for key in ours} == ours
    assert dict(composer.run(typed)) == ours
    assert composer.choices(typed) == {
        group: str(option) for group, option in expected.hydra.runtime.choices.items()
    }


def test_files_are_read_once_for_each_choice_of_them(hydra):
    composer = Composer(hydra.loader, hydra.command)
    seeds = [
        composer.run([f"network={network}", f"seed={seed}"]).seed
        for network in ("tiny", "small")
        for seed in range(5)
    ]
    assert seeds == [*range(5), *range(5)]
    assert hydra.calls == [["network=tiny"], ["network=small"]]


def test_launchers_are_given_what_hydra_makes_and_files_are_read_once(hydra):
    loader = GridLoader(hydra.loader, hydra.command)
    jobs = [loader.load_sweep_config(hydra.command, [f"seed={seed}"]) for seed in range(3)]
    assert jobs == [hydra.compose(hydra.command, [f"seed={seed}"]) for seed in range(3)]
    assert hydra.calls == [[]]
    own = loader.load_sweep_config(hydra.command, ["seed=4", "hydra.job.name=another"])
    assert (own.seed, own.hydra.job.name) == (4, "another")


def test_one_job_does_not_see_what_another_was_given(hydra):
    composer = Composer(hydra.loader, hydra.command)
    composer.run(["network.hidden=[7]", "epsilon=0.4"])
    plain = composer.run()
    assert plain.network == hydra.compose(hydra.command, []).network
    assert plain.epsilon == 0.2
