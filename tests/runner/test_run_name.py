"""Names of runs and networks in trackers."""

import pytest

from ppo_lab.runner.run_name import network_name, run_name
from ppo_lab.utils.paths import CONF_DIR
from tests.helpers.trainers import config


@pytest.mark.parametrize(
    ("overrides", "varying", "more"),
    [
        (["network=tiny", "lr=0.001"], None, "__network=tiny__lr=0.001"),
        # Not what changes no result, nor what has its own place in the name.
        (["tracking.mode=offline", "compile=never", "epsilon=0.2", "seed=1"], None, ""),
        # Of a grid only the keys that it varies, whatever they are.
        (["network=tiny", "lr=0.001", "compile=never"], ["compile"], "__compile=never"),
        (["+env.kwargs.g=9.8"], None, "__env.kwargs.g=9.8"),
        (["lr=0.00012345678901", "seed=1"], ["lr"], "__lr=0.0001235"),
    ],
)
def test_a_runs_name_carries_what_sets_it_apart(overrides, varying, more):
    name = run_name(config(), overrides, varying)
    assert name == f"CartPole-v1__co_resident__eps0.2__s1{more}"


def test_every_option_of_a_network_has_its_name():
    names = {path.stem for path in CONF_DIR.glob("network/*.yaml")} - {"hf"}  # needs a path
    gpts = {name for name in names if name.startswith("gpt_")}
    assert len(gpts) > 3
    for name in names:
        more = ["env=arithmetic", "env.pretrain_steps=0", "forecast=true"] if name in gpts else []
        if name not in ("huge", "gpt_1b", "gpt_7b"):
            assert network_name(config(f"network={name}", *more).network, []) == name


def test_a_changed_network_has_the_name_of_its_kind_and_ones_own_file_its_own():
    changed = config("network=tiny", "network.hidden=[9]").network
    assert network_name(changed, ["network=tiny", "network.hidden=[9]"]) == "mlp"
    assert network_name(changed, ["network=mine"]) == "mine"
