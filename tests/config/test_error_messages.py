"""Every wrong value is refused in one or two lines that name key, value and what is allowed."""

import pytest

from ppo_lab.config.compose import check_jobs, register
from ppo_lab.config.error_messages import explain
from ppo_lab.config.study import RENAMED_KEYS, StudyConfig
from tests.helpers.commands import ppo_lab

# What is typed, and what the message must hold.
REFUSED = [
    ("epsilon=-1", "epsilon=-1", "> 0, or none"),
    ("epsilon=0", "epsilon=0", "> 0, or none"),
    ("epsilon=nan", "epsilon=nan", "number > 0"),
    ("epsilon=inf", "epsilon=inf", "or none"),
    ("epsilon=abc", "epsilon=abc", "number > 0"),
    ("epsilon=true", "epsilon=true", "number > 0"),
    ("epsilon=[0.1]", "epsilon=[0.1]", "number > 0"),
    ("epsilon_high=-0.1", "epsilon_high=-0.1", "> 0, or none"),
    ("epsilon=none epsilon_high=0.3", "epsilon_high=0.3", "no effect with epsilon=none"),
    ("value_epsilon=0", "value_epsilon=0", "> 0, or none"),
    ("dual_clip=0.5", "dual_clip=0.5", "> 1, or none"),
    ("target_kl=-1", "target_kl=-1", "> 0, or none"),
    ("max_grad_norm=0", "max_grad_norm=0", "> 0, or none"),
    ("epslon=0.1", "epslon=0.1", "did you mean epsilon?"),
    ("+foo=1", "+foo=1", "no such key"),
    ("+env.backnd=torch", "+env.backnd=torch", "did you mean env.backend?"),
    ("foo/bar=1", "foo/bar=1", "no such key"),
    ("epsilon.x=1", "epsilon.x=1", "no such key"),
    ("tracking.mod=offline", "tracking.mod=offline", "did you mean tracking.mode?"),
    ("env=cartpol", "env=cartpol", "did you mean cartpole?"),
    ("network=huuge", "network=huuge", "did you mean huge?"),
    ("memory=nope", "memory=nope", "auto, co_resident, offloaded_optimizer, parked, shared_trunk"),
    ("tracking=foo", "tracking=foo", "local, wandb"),
    ("memory.pin_memory=false", "memory.pin_memory=false", "offloaded_optimizer or parked alone"),
    ("memory=offloaded_optimizer memory.pin=1", "memory.pin=1", "did you mean memory.pin_memory?"),
    ("env.id=CartPole-v9", "env.id=CartPole-v9", "did you mean CartPole-v1?"),
    ("env=gymnasium", "env.id", "needs a value"),
    ("env.backend=jax", "env.backend=jax", "auto, torch, gymnasium"),
    ("env=halfcheetah env.backend=torch", "env.backend=torch", "HalfCheetah-v5 needs gymnasium"),
    ("num_minibatches=3", "num_minibatches=3", "must divide num_envs * num_steps = 8 * 128 = 1024"),
    ("num_minibatches=0", "num_minibatches=0", ">= 1"),
    ("num_envs=0", "num_envs=0", "whole number >= 1"),
    ("num_envs=2.5", "num_envs=2.5", "whole number"),
    ("num_steps=-1", "num_steps=-1", ">= 1"),
    ("num_epochs=0", "num_epochs=0", ">= 1"),
    ("lr=0", "lr=0", "> 0"),
    ("lr=-0.001", "lr=-0.001", "> 0"),
    ("lr=abc", "lr=abc", "a number"),
    ("lr=null", "lr=null", "must have a value"),
    ("lr=nan", "lr=nan", "number > 0"),
    ("gamma=1.5", "gamma=1.5", "<= 1"),
    ("gae_lambda=-0.1", "gae_lambda=-0.1", ">= 0"),
    ("entropy_coef=-1", "entropy_coef=-1", ">= 0"),
    ("total_steps=0", "total_steps=0", ">= 1"),
    ("total_steps=1000", "total_steps=1000", "at least one rollout"),
    ("seed=-1", "seed=-1", "from 0 to 2^63 - 1"),
    ("seed=1e30", "seed=1e30", "whole number"),
    ("device=tpu", "device=tpu", "auto, cpu, cuda or cuda:N"),
    ("dtype=float16", "dtype=float16", "float32, float64, bfloat16"),
    ("num_threads=0", "num_threads=0", "auto or a whole number >= 1"),
    ("name=a/b", "name=a/b", "letters, digits"),
    ("lr_schedule=cosine", "lr_schedule=cosine", "constant, linear"),
    ("bootstrap_truncated=maybe", "bootstrap_truncated=maybe", "true or false"),
    ("network.hidden=[]", "network.hidden=[]", "one or more widths"),
    ("network.hidden=[0]", "network.hidden=[0]", "one or more widths"),
    ("network.hidden=3", "network.hidden=3", "a list"),
    ("epsilon=0.1,0.2", "epsilon=0.1,0.2", "add -m"),
    ("seed=range(1,3)", "seed=range(1,3)", "add -m"),
    ("env=cartpole,acrobot", "env=cartpole,acrobot", "add -m"),
    ("epsilon", "epsilon", "key=value"),
    ("epsilon=[1", "epsilon=[1", "cannot be read"),
    ("=3", "=3", "names no key"),
    ("epsilon=${foo}", "epsilon=${foo}", "'foo' not found"),
    ("hydra.foo=1", "hydra.foo=1", "no such key"),
    ("env=lunarlander env.kwargs={continuous:true}", "env.kwargs", "+env.kwargs"),
    (
        "num_envs=100000 num_steps=30000 num_minibatches=7 total_steps=3000000000",
        "num_minibatches=7",
        "nearest that does: 6",
    ),
    ("total_steps=1e5", "total_steps=1e5", "write 100000"),
    ("+seed=3", "+seed", "without the +"),
    ("tracking.init_timeout_s=1000", "tracking.init_timeout_s=1000", "at most 60"),
    ("tracking.project=a/b", "tracking.project=a/b", "128"),
]
REFUSED_GRIDS = [
    ("epsilon=0.1,-1", "epsilon=-1", "> 0, or none"),
    ("epsilon=0.1,0.2 memory=co_resident,nope", "memory=nope", "co_resident"),
    ("epsilon=interval(0,1)", "epsilon=interval(0,1)", "belongs to a study"),
    ("epsilon=interval(0.1,none)", "epsilon=interval(0.1,none)", "cannot hold none"),
    ("num_minibatches=4,3", "num_minibatches=3", "must divide"),
    ("env=cartpole,pendulum num_envs=8,0", "num_envs=0", ">= 1"),
]


def refuse(command: str, *, is_multirun: bool) -> str:
    register()
    overrides = command.split(" ")
    with pytest.raises(Exception) as caught:  # noqa: PT011 - explain() must know every kind
        check_jobs(overrides, is_multirun=is_multirun, config_dir=None, config_name=None)
    message = explain(caught.value, overrides)
    assert message is not None, f"not explained: {caught.value!r}"
    return message


@pytest.mark.parametrize(("command", "named", "allowed"), REFUSED, ids=[r[0] for r in REFUSED])
def test_a_wrong_value_is_refused_with_its_key_value_and_remedy(command, named, allowed):
    message = refuse(command, is_multirun=False)
    assert named in message
    assert allowed in message
    assert len(message.splitlines()) <= 2


@pytest.mark.parametrize(
    ("command", "named", "allowed"), REFUSED_GRIDS, ids=[r[0] for r in REFUSED_GRIDS]
)
def test_a_grid_is_refused_for_its_one_wrong_job(command, named, allowed):
    message = refuse(command, is_multirun=True)
    assert named in message
    assert allowed in message


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = refuse("device=cuda", is_multirun=False)
    assert "device=cuda" in message
    assert "device=cpu" in message


def test_an_error_of_our_own_making_is_not_explained_away():
    assert explain(RuntimeError("a bug"), ["epsilon=0.1"]) is None


@pytest.mark.parametrize("arguments", [["epsilon=-1"], ["epsilon=0.1,-1", "-m"]])
def test_a_refusal_exits_with_2_and_leaves_nothing_behind(tmp_path, arguments):
    done = ppo_lab(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ppo_lab: epsilon=-1:")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_hydra_full_error_still_gives_the_traceback(tmp_path):
    done = ppo_lab(tmp_path, "epsilon=-1", HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


def test_a_secret_in_the_config_is_refused_without_repeating_it():
    message = refuse("+env.kwargs.api_key=s3cret", is_multirun=False)
    assert "env.kwargs.api_key" in message
    assert "s3cret" not in message


def test_a_nested_secret_is_refused_too():
    message = refuse("+env.kwargs.auth={token:s3cret}", is_multirun=False)
    assert "env.kwargs.auth.token" in message
    assert "s3cret" not in message


@pytest.mark.parametrize(
    ("yaml", "allowed"),
    [
        ("env: {id: [", "cannot be read"),
        ("# @package _global_\nenv:\n  idd: CartPole-v1\n", "idd"),
    ],
)
def test_a_broken_yaml_of_the_users_own_is_refused(tmp_path, yaml, allowed):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "mine.yaml").write_text(yaml)
    register()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - explain() must know every kind
        check_jobs(["env=mine"], is_multirun=False, config_dir=str(tmp_path), config_name=None)
    message = explain(caught.value, ["env=mine"])
    assert message is not None
    assert allowed in message


@pytest.mark.parametrize(
    ("config_dir", "config_name", "named"),
    [
        ("/no/such/folder", None, "--config-dir=/no/such/folder"),
        (None, "nope", "--config-name=nope"),
    ],
)
def test_config_folders_and_names_that_are_not_there_are_refused(config_dir, config_name, named):
    register()
    with pytest.raises(Exception) as caught:  # noqa: PT011
        check_jobs([], is_multirun=False, config_dir=config_dir, config_name=config_name)
    assert named in (explain(caught.value, []) or "")


def explained(overrides, *, config_dir=None, config_name=None):
    """Return the message for a command line that is refused."""
    register()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - explain() must know every kind
        check_jobs(overrides, is_multirun=False, config_dir=config_dir, config_name=config_name)
    return explain(caught.value, overrides)


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_an_old_key_on_the_command_line_is_refused_with_its_new_name(old, new, prefix):
    assert hasattr(StudyConfig(), new.removeprefix("study."))
    assert not hasattr(StudyConfig(), old.removeprefix("study."))
    message = explained(["study=default", f"{prefix}{old}=4"])
    assert message == f"ppo_lab: {prefix}{old}=4: is now {new}"


def test_a_key_below_an_old_one_is_refused_with_its_new_name():
    message = explained(["study=default", "+study.when.lr='epsilon=0.1,0.2'"])
    assert message == "ppo_lab: study.when.lr='epsilon=0.1,0.2': is now study.conditions.lr"


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_an_old_key_in_a_sweep_file_is_refused_with_its_new_name(old, new, tmp_path):
    (tmp_path / "sweeps").mkdir()
    name = old.removeprefix("study.")
    (tmp_path / "sweeps" / "mine.yaml").write_text(
        f"defaults:\n  - override /study: default\nstudy:\n  {name}: {{epsilon: 1}}\n"
    )
    message = explained(["sweep=mine"], config_dir=str(tmp_path))
    assert message == f"ppo_lab: {name} in sweep/mine.yaml: is now {new}"


@pytest.mark.parametrize("study", ["", "  - override study: default\n"])
@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_an_old_key_in_a_saved_config_is_refused_with_its_new_name(old, new, study, tmp_path):
    name = old.removeprefix("study.")
    (tmp_path / "best.yaml").write_text(
        f"defaults:\n  - config\n{study}  - _self_\nstudy:\n  {name}: 3\n"
    )
    message = explained([], config_dir=str(tmp_path), config_name="best")
    assert message == f"ppo_lab: {name} in best.yaml: is now {new}"
