"""Search spaces: Hydra's grammar, Optuna's distributions, and what is refused before a study."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ppo_lab.studies.definition.space import read_space, split_overrides
from ppo_lab.utils.errors import ConfigError
from tests.helpers.spaces import make_base, make_space


@pytest.fixture(scope="module")
def base():
    return make_base("network=tiny")


@pytest.mark.parametrize(
    ("key", "text", "distribution"),
    [
        ("epsilon", "interval(0.05, 0.5)", FloatDistribution(0.05, 0.5)),
        ("lr", "tag(log, interval(1e-5, 1e-3))", FloatDistribution(1e-5, 1e-3, log=True)),
        # The key's own type decides: gae_lambda is real, num_envs whole, however ends are written.
        ("gae_lambda", "interval(0, 1)", FloatDistribution(0.0, 1.0)),
        ("num_envs", "interval(4, 64)", IntDistribution(4, 64)),
        ("num_envs", "tag(log, interval(4, 64))", IntDistribution(4, 64, log=True)),
        ("target_kl", "interval(0.01, 0.03)", FloatDistribution(0.01, 0.03)),  # none by default
        # A range ends before its stop, as in Hydra and Python.
        ("num_epochs", "range(1, 5)", IntDistribution(1, 4)),
        ("num_epochs", "range(2, 11, 4)", IntDistribution(2, 10, step=4)),
        ("num_epochs", "range(5, 1, -2)", IntDistribution(3, 5, step=2)),
        ("epsilon", "range(0.1, 0.4, 0.1)", FloatDistribution(0.1, 0.3, step=0.1)),
        ("epsilon", "choice(0.1, 0.2, none)", CategoricalDistribution((0.1, 0.2, "none"))),
        ("epsilon", "0.1,0.2,none", CategoricalDistribution((0.1, 0.2, "none"))),
        ("memory", "choice(co_resident, shared_trunk)",
         CategoricalDistribution(("co_resident", "shared_trunk"))),
        ("network.hidden", "choice([64,64], [8])", CategoricalDistribution(("[64,64]", "[8]"))),
        ("bootstrap_truncated", "choice(true, false)", CategoricalDistribution((True, False))),
    ],
)  # fmt: skip
def test_a_dimension_becomes_the_distribution_it_says(base, key, text, distribution):
    (parameter,) = read_space({key: text}, {}, base).parameters
    assert parameter.distribution == distribution


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("epsilon", "interval(0.1, none)", "an interval cannot hold none"),
        ("epsilon", "tag(log, interval(0.1, None))", "an interval cannot hold none"),
        ("epsilon", "interval(0.5, 0.1)", "from a smaller to a larger"),
        ("epsilon", "tag(log, interval(0, 1))", "above 0"),
        ("num_envs", "tag(log, interval(0, 8))", "above 0"),
        ("num_envs", "interval(4.5, 8)", "whole numbers"),
        ("num_envs", "range(1.5, 8)", "whole numbers"),
        ("num_epochs", "range(1, 2)", "two values or more"),
        ("epsilon", "choice(0.1)", "two different choices"),
        ("epsilon", "choice(0.1, 0.1)", "two different choices"),
        ("epsilon", "0.1", "must be choice"),
        ("epsilon", "shuffle(range(1, 5))", "must be choice"),
        ("memory", "glob(*)", "must be choice"),
        ("lr", "tag(logg, interval(1e-5, 1e-3))", "logg"),
        ("num_envs", "tag(log, range(1, 9))", "log scale needs"),
        ("memory", "interval(0, 1)", "no number by default (co_resident)"),
        ("lr_schedule", "interval(0, 1)", "no number by default (constant)"),
        ("bootstrap_truncated", "interval(0, 1)", "no number by default"),
        ("epsilon", "interval(0.1", "cannot be read"),
        ("epsilom", "interval(0.1, 0.2)", "did you mean epsilon"),
        ("network.hiden", "choice([8], [9])", "did you mean network.hidden"),
        ("nothing.at_all", "choice(1, 2)", "no such key"),
    ],
)
def test_what_is_no_dimension_is_refused_with_the_key_and_the_reason(base, key, text, reason):
    with pytest.raises(ConfigError) as refused:
        read_space({key: text}, {}, base)
    assert refused.value.key == key
    assert reason in str(refused.value)


def test_the_command_line_is_split_into_what_is_fixed_and_what_is_searched():
    fixed, searched = split_overrides(
        ["env=halfcheetah", "epsilon=tag(log, interval(0.05,0.5))", "lr=1e-3", "gamma=0.9,0.99"]
    )
    assert fixed == ["env=halfcheetah", "lr=1e-3"]
    assert searched == {"epsilon": "tag(log, interval(0.05,0.5))", "gamma": "0.9,0.99"}


def test_a_trials_parameters_become_overrides_that_compose(base):
    space = read_space(
        {
            "epsilon": "choice(0.1, none)",
            "lr": "tag(log, interval(1e-5, 1e-3))",
            "network.hidden": "choice([64,64], [8])",
            "num_envs": "interval(4, 8)",
            "bootstrap_truncated": "choice(true, false)",
        },
        {},
        base,
    )
    params = {
        "epsilon": "none", "lr": 1e-5, "network.hidden": "[8]", "num_envs": 8,
        "bootstrap_truncated": False,
    }  # fmt: skip
    overrides = space.overrides(params)
    assert overrides == [
        "epsilon=none", "lr=1e-05", "network.hidden=[8]", "num_envs=8", "bootstrap_truncated=False"
    ]  # fmt: skip
    config = base.config(overrides)
    assert (config.epsilon, config.lr, config.network.hidden) == (None, 1e-5, [8])
    assert (config.num_envs, config.bootstrap_truncated) == (8, False)


def test_what_a_storage_gives_back_means_the_same_overrides(base, tmp_path):
    space = read_space(
        {"epsilon": "choice(0.1, none)", "network.hidden": "choice([64,64], [8])"}, {}, base
    )
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}")
    asked = space.sample(study.ask())
    stored = optuna.load_study(study_name=study.study_name, storage=study._storage).trials[0]
    assert space.overrides(stored.params) == space.overrides(asked)


def test_every_corner_is_composed_before_a_study(base):
    # 8 envs of 128 steps are 1024 rows: 3 minibatches do not divide them.
    space = read_space({"num_minibatches": "range(2, 5)"}, {}, base)
    with pytest.raises(
        ConfigError, match=r"num_minibatches=3: must divide .* at num_minibatches=3"
    ):
        space.check(base)
    read_space({"num_minibatches": "choice(2, 4)"}, {}, base).check(base)


def test_a_corner_that_only_a_combination_reaches_is_found(base):
    # 4 environments of 8 steps are 32 rows, too few for 64 minibatches; each alone is fine.
    texts = {"num_envs": "choice(4, 8)", "num_steps": "choice(8, 128)",
             "num_minibatches": "choice(4, 64)"}  # fmt: skip
    with pytest.raises(ConfigError, match="num_envs=4 num_steps=8 num_minibatches=64"):
        read_space(texts, {}, base).check(base)


def test_a_value_out_of_a_keys_range_is_found_at_the_intervals_end(base):
    with pytest.raises(ConfigError, match="gamma"):
        read_space({"gamma": "interval(0.9, 1.5)"}, {}, base).check(base)


def test_of_many_corners_a_sample_touches_every_end(base):
    # 2^9 = 512 corners, of which 64 are tried; the one bad end of nine keys is among them.
    texts = {
        "lr": "interval(1e-5, 1e-3)", "gamma": "interval(0.9, 1)", "adam_eps": "interval(1e-8, 1)",
        "epsilon": "interval(0.1, 0.3)", "max_grad_norm": "interval(0.5, 1)",
        "value_coef": "interval(0.5, 1)", "entropy_coef": "interval(0, 1)",
        "target_kl": "interval(0.01, 1)", "gae_lambda": "interval(0.9, 1.01)",
    }  # fmt: skip
    space = read_space(texts, {}, base)
    assert len(space._corners()) == 64
    with pytest.raises(ConfigError, match="gae_lambda"):
        space.check(base)


def test_an_unknown_option_of_a_group_is_refused(base):
    with pytest.raises(Exception, match="no_such_strategy"):
        read_space({"memory": "choice(co_resident, no_such_strategy)"}, {}, base).check(base)


CONDITIONAL = {
    "memory.pin_memory": "choice(true, false)",
    "memory": "choice(co_resident, offloaded_optimizer)",
}
PINNED = {"memory.pin_memory": "memory=offloaded_optimizer"}


def test_a_conditional_key_is_there_only_when_its_condition_holds(base):
    space = read_space(CONDITIONAL, PINNED, base)
    space.check(base)  # co_resident has no pin_memory: composing it would fail
    study = optuna.create_study()
    for memory in ("co_resident", "offloaded_optimizer"):
        study.enqueue_trial({"memory": memory, "memory.pin_memory": False})
    assert space.sample(study.ask()) == {"memory": "co_resident"}
    assert space.sample(study.ask()) == {
        "memory": "offloaded_optimizer",
        "memory.pin_memory": False,
    }


def test_an_unconditional_key_of_one_option_is_refused(base):
    with pytest.raises(ConfigError, match=r"memory.pin_memory.*no such key"):
        read_space(CONDITIONAL, {}, base)


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        ({"epsilon": "memory=co_resident"}, "is not in the search space"),
        ({"memory.pin_memory": "network=tiny"}, "network is not in the search space"),
        ({"memory.pin_memory": "memory"}, "must be key=value"),
        ({"memory.pin_memory": "memory="}, "must be key=value"),
        ({"memory.pin_memory": "memory=interval(0,1)"}, "must be key=value"),
        ({"memory.pin_memory": "memory=shared_trunk"}, "can never hold"),
        ({**PINNED, "memory": "memory.pin_memory=true"}, "depends on this key"),
    ],
)
def test_a_condition_that_means_nothing_is_refused(base, when, reason):
    with pytest.raises(ConfigError) as refused:
        read_space(CONDITIONAL, when, base)
    assert reason in str(refused.value)


def test_any_of_several_values_and_all_of_several_conditions(base):
    space = read_space(
        {
            "memory": "choice(co_resident, shared_trunk, offloaded_optimizer)",
            "network": "choice(tiny, small)",
            "lr": "interval(1e-4, 1e-3)",
        },
        {"lr": ["memory=co_resident,shared_trunk", "network=tiny"]},
        base,
    )
    lr = space["lr"]
    assert lr.is_active({"memory": "shared_trunk", "network": "tiny"})
    assert not lr.is_active({"memory": "shared_trunk", "network": "small"})
    assert not lr.is_active({"memory": "offloaded_optimizer", "network": "tiny"})
    assert not lr.is_active({"network": "tiny"})


def test_the_defaults_are_the_base_configs_values(base):
    space = make_space(
        base, epsilon="interval(0.05, 0.5)", memory="choice(co_resident, shared_trunk)"
    )
    assert space.defaults(base) == {"epsilon": 0.2, "memory": "co_resident"}


@pytest.mark.parametrize("epsilon", ["none", "0.7"])
def test_defaults_outside_the_space_say_so(epsilon):
    base = make_base(f"epsilon={epsilon}")
    space = make_space(base, epsilon="interval(0.05, 0.5)")
    assert space.defaults(base) is None


def test_none_is_a_default_where_the_space_offers_it():
    base = make_base("epsilon=none")
    space = make_space(base, epsilon="choice(0.1, none)")
    assert space.defaults(base) == {"epsilon": "none"}


def test_a_default_between_the_steps_of_a_range_is_outside(base):
    assert make_space(base, epsilon="range(0.1, 0.5, 0.2)").defaults(base) is None
    inside = make_space(base, epsilon="range(0.1, 0.4, 0.1)").defaults(base)
    assert inside == {"epsilon": 0.2}


def test_a_starting_point_may_leave_keys_out_and_is_checked(base):
    space = read_space({**CONDITIONAL, "epsilon": "choice(0.1, 0.2, none)"}, PINNED, base)
    assert space.read_point({"epsilon": None}, base) == {"epsilon": "none"}
    for point in (
        {"epsilon": 0.1, "memory": "co_resident"},
        {"memory": "offloaded_optimizer"},
        {"memory": "offloaded_optimizer", "memory.pin_memory": True},
    ):
        assert space.read_point(point, base) == point


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        ({"epsilom": 0.1}, "did you mean epsilon"),
        ({"epsilon": 0.3}, "must lie in"),
        ({"memory": "co_resident", "memory.pin_memory": True}, "condition does not hold"),
    ],
)
def test_a_starting_point_outside_the_space_is_refused(base, point, reason):
    space = read_space({**CONDITIONAL, "epsilon": "choice(0.1, 0.2, none)"}, PINNED, base)
    with pytest.raises(ConfigError) as refused:
        space.read_point(point, base)
    assert refused.value.key.startswith("study.enqueue.")
    assert reason in str(refused.value)


def test_a_grid_holds_every_value_of_a_choice_or_a_range(base):
    space = make_space(base, epsilon="choice(0.1, 0.2, none)", num_epochs="range(1, 5)")
    assert [p.grid() for p in space.parameters] == [(0.1, 0.2, "none"), (1, 2, 3, 4)]
    assert make_space(base, epsilon="interval(0.1, 0.2)")["epsilon"].grid() is None
