"""What a study is, as a person types it, and what is refused before anything is created."""

import pytest
from omegaconf.errors import OmegaConfBaseException

from ppo_lab.config.error_messages import explain
from ppo_lab.utils.errors import ConfigError
from tests.helpers.studies import plan_of


def test_the_command_lines_space_joins_that_of_the_file_and_a_fixed_key_leaves_it():
    space = "study.space={epsilon:'interval(0.1,0.2)',gamma:'interval(0.9,0.99)'}"
    plan = plan_of(space, "lr=tag(log,interval(1e-4,1e-3))", "gamma=0.98")
    assert plan.space.texts() == {
        "epsilon": "interval(0.05,0.5)",  # the command line's, of the quick study
        "lr": "tag(log,interval(1e-4,1e-3))",
    }
    assert plan.config.gamma == 0.98


def test_a_dimension_may_be_typed_where_the_file_has_it():
    plan = plan_of("study.space.lr=interval(1e-4,1e-3)")
    assert plan.space.texts()["lr"] == "interval(1e-4,1e-3)"


def test_the_name_is_the_sweep_and_what_was_fixed_beside_it():
    plan = plan_of("study.name=auto", "lr=3e-4", "study.num_trials=7", "num_threads=1")
    assert plan.name == "study,network=tiny,total_steps=2048,lr=3e-4"


def test_a_study_that_an_earlier_version_began_can_be_resumed():
    # A new key of the run must not be in the fingerprint while it has its default.
    assert plan_of().fingerprint["sha256"] == "a7951c2ef7e54dfc"


def test_marks_are_even_shares_of_the_run_without_its_end():
    plan = plan_of("study.num_reports=4", "total_steps=2050")
    assert plan.marks == (513, 1025, 1538)  # rounded up: 512.5, 1,025, 1,537.5


def test_a_trials_runs_are_its_parameters_with_consecutive_seeds():
    plan = plan_of("study.num_seeds=3", "seed=10")
    configs = plan.trial_configs({"epsilon": 0.25})
    assert [(config.seed, config.epsilon) for config in configs] == [
        (10, 0.25), (11, 0.25), (12, 0.25),
    ]  # fmt: skip
    overrides = plan.trial_overrides({"epsilon": 0.25})
    assert overrides == ("network=tiny", "total_steps=2048", "tracking=local", "seed=10",
                         "epsilon=0.25")  # fmt: skip


@pytest.mark.parametrize(("pruner", "share"), [("none", 1.0), ("median", 0.5)])
def test_a_pruned_study_plans_half_of_its_steps(pruner, share):
    plan = plan_of("study.num_seeds=3", "study.num_trials=10", f"study/pruner={pruner}")
    configs = plan.trial_configs({"epsilon": 0.25})
    assert plan.planned_steps(configs) == share * 10 * 3 * 2048


def test_the_storage_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("PPO_LAB_STORAGE", "sqlite:///elsewhere.db")
    assert plan_of().url.database == "elsewhere.db"
    monkeypatch.delenv("PPO_LAB_STORAGE")
    assert plan_of().url.database == "outputs/studies/quick/study.db"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("study.num_trials=0", "study.num_trials"),
        ("study.num_workers=none", "study.num_workers"),
        ("study.num_workers=half", "study.num_workers"),
        ("study.name=../up", "study.name"),
        ("study.max_retries=-1", "study.max_retries"),
        ("study.storage_timeout_s=0", "study.storage_timeout_s"),
        ("study.storage=mysql://host/db", "study.storage"),
        ("study.storage=study.db", "study.storage"),
        ("study.direction=up", "study.direction"),
        ("study.constraints=[peak_vram_gib]", "study.constraints"),
        ("epsilom=interval(0.1,0.2)", "epsilom"),
        ("study.enqueue=[{lr:1e-3}]", "study.enqueue.lr"),
    ],
)
def test_wrong_values_are_named(override, key):
    with pytest.raises(ConfigError) as caught:
        plan_of(override)
    assert caught.value.key == key


def test_a_study_of_no_key_is_refused():
    with pytest.raises(ConfigError, match=r"study.space=\{\}: must name a key to vary"):
        plan_of("epsilon=0.2")


def test_a_key_that_no_study_has_is_refused():
    with pytest.raises(Exception, match="num_trails") as caught:
        plan_of("study.num_trails=3")
    assert isinstance(caught.value.__cause__ or caught.value, OmegaConfBaseException)


@pytest.mark.parametrize(
    "url",
    ["mysql://user:opensesame@host/db", "opensesame@host", "postgresql//user:opensesame@host/db",
     "postgresql://user:opensesame@host:port/db", "postgresql+asyncpg://user:opensesame@host/db",
     "sqlite://user:opensesame@host"],
)  # fmt: skip
def test_a_password_is_not_repeated_in_a_refusal(url, capsys):
    override = f"study.storage='{url}'"
    with pytest.raises(ConfigError, match=r"study.storage=\.\.\.: must be auto, sqlite") as caught:
        plan_of(override)
    assert "opensesame" not in str(caught.value)
    assert "opensesame" not in explain(caught.value, [override])


def test_pruning_by_the_return_is_refused_where_the_return_is_not_the_objective():
    plan = plan_of("study.objective=env_steps_per_s")
    assert plan.marks == ()
    with pytest.raises(ConfigError, match="study/pruner=none"):
        plan.check()


def test_a_space_whose_end_no_run_can_have_is_refused():
    with pytest.raises(ConfigError, match="gamma"):
        plan_of("gamma=interval(0.9,1.1)").check()
