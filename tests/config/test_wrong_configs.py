"""A corpus of wrong command lines: each is refused in a line that names key, value and remedy."""

import copy
import shlex
from contextlib import contextmanager

import pytest

from ppo_lab.config.compose import check_command, compose_command, load, register
from ppo_lab.config.composer import Composer, open_hydra, parse
from ppo_lab.config.error_messages import explain
from ppo_lab.config.grid import check_dimensions
from ppo_lab.studies.command import check_study
from ppo_lab.utils.errors import ConfigError
from tests.helpers.commands import ppo_lab
from tests.helpers.trainers import default_composer

# What is typed, and what the message must hold.
REFUSED = [
    ("epsilon=-1", "epsilon=-1", "> 0, or none"),
    ("epsilon=nan", "epsilon=nan", "number > 0"),
    ("epsilon=inf", "epsilon=inf", "or none"),
    ("epsilon=abc", "epsilon=abc", "number > 0"),
    ("epsilon=true", "epsilon=true", "number > 0"),
    ("epsilon_high=-0.1", "epsilon_high=-0.1", "> 0, or none"),
    ("epsilon=none epsilon_high=0.3", "epsilon_high=0.3", "no effect with epsilon=none"),
    ("value_epsilon=0", "value_epsilon=0", "> 0, or none"),
    ("dual_clip=0.5", "dual_clip=0.5", "> 1, or none"),
    ("target_kl=-1", "target_kl=-1", "> 0, or none"),
    ("max_grad_norm=0", "max_grad_norm=0", "> 0, or none"),
    ("epslon=0.1", "epslon=0.1", "did you mean epsilon?"),
    ("+foo=1", "+foo=1", "no such key"),
    ("+env.backnd=torch", "+env.backnd=torch", "did you mean env.backend?"),
    ("epsilon.x=1", "epsilon.x=1", "no such key"),
    ("tracking.mod=offline", "tracking.mod=offline", "did you mean tracking.mode?"),
    ("env=cartpol", "env=cartpol", "did you mean cartpole?"),
    ("network=huuge", "network=huuge", "did you mean huge?"),
    ("memory=nope", "memory=nope", "auto, co_resident, critic_free, offloaded_optimizer, parked"),
    ("tracking=foo", "tracking=foo", "local, wandb"),
    ("memory.pin_memory=false", "memory.pin_memory=false", "offloaded_optimizer or parked alone"),
    ("memory=offloaded_optimizer memory.pin=1", "memory.pin=1", "did you mean memory.pin_memory?"),
    ("env.id=CartPole-v9", "env.id=CartPole-v9", "did you mean CartPole-v1?"),
    ("env.backend=jax", "env.backend=jax", "auto, torch, gymnasium"),
    ("env=halfcheetah env.backend=torch", "env.backend=torch", "HalfCheetah-v5 needs gymnasium"),
    ("num_minibatches=3", "num_minibatches=3", "must divide num_envs * num_steps = 8 * 128 = 1024"),
    ("num_minibatches=0", "num_minibatches=0", ">= 1"),
    ("num_envs=0", "num_envs=0", "whole number >= 1"),
    ("num_envs=2.5", "num_envs=2.5", "whole number"),
    ("num_steps=-1", "num_steps=-1", ">= 1"),
    ("lr=0", "lr=0", "> 0"),
    ("lr=abc", "lr=abc", "a number"),
    ("lr=null", "lr=null", "must have a value"),
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
    ("epsilon=${foo}", "epsilon=${foo}", "'foo' not found"),
    (
        "num_envs=30000 num_steps=30000 num_minibatches=7 total_steps=900000000",
        "num_minibatches=7",
        "nearest that does: 6",
    ),
    ("total_steps=1e5", "total_steps=1e5", "write 100000"),
    ("+seed=3", "+seed", "without the +"),
    ("tracking.init_timeout_s=1000", "tracking.init_timeout_s=1000", "at most 60"),
    ("tracking.project=a/b", "tracking.project=a/b", "128"),
    ("num_epochs=1000000000", "num_epochs=1000000000", "<= 1,000"),
    ("total_steps=9999999999999999999999", "total_steps=9999999999999999999999", "<= 1,000,000"),
    ("num_envs=100000000", "num_envs=100000000", "<= 1,000,000"),
    ("num_steps=100000000", "num_steps=100000000", "<= 1,000,000"),
    ("num_envs=1000000 num_steps=100000", "num_envs=1000000", "rows; at most 1,000,000,000"),
    ("network.hidden=[1000000,1000000]", "network", "1,000,006,000,000 parameters; at most"),
    ("num_threads=1000000", "num_threads=1000000", "<= 1,024"),
    ("lr=1e300", "lr=1e300", "1e+38 in size"),
    ("adam_eps=1e-300", "adam_eps=1e-300", "1e-37"),
    ("epsilon=1e-320", "epsilon=1e-320", "1e-37"),
    ("epsilon_high=0.1", "epsilon_high=0.1", "at least epsilon=0.2"),
    ("vram_limit_gib=4 device=cpu", "vram_limit_gib=4", "needs device=cuda"),
    ("vram_budget_gib=much", "vram_budget_gib=much", "> 0, or none"),
    ("value_coef=-0.5", "value_coef=-0.5", ">= 0"),
    ("compile=sometimes", "compile=sometimes", "auto, never, always"),
    ("matmul_precision=low", "matmul_precision=low", "highest, high, medium"),
    ("profile=1", "profile=1", "auto, never, always"),
    ("advantage_normalization=both", "advantage_normalization=both", "minibatch"),
    ("env.max_episode_steps=0", "env.max_episode_steps=0", "at least 1"),
    ("env=gymnasium", "env.id", "needs a value"),
    ("memory.num_micro_batches=0", "memory.num_micro_batches=0", "must divide the minibatch's"),
    ("memory.num_micro_batches=3", "memory.num_micro_batches=3", "must divide the minibatch's"),
    ("memory.rollout_place=disk", "memory.rollout_place=disk", "host, device"),
    ("checkpoint.every_s=-1", "checkpoint.every_s=-1", ">= 0"),
    ("env=text network=tiny", "network=tiny", "choose a transformer, such as network=gpt_tiny"),
    ("network=gpt_tiny", "network=gpt_tiny", "choose a perceptron, such as network=small"),
    ("env=text network=lstm", "network=lstm", "reads numbers, not tokens"),
    ("env=text network.max_length=4", "network.max_length=4", "the steps of a sequence"),
    ("memory=critic_free baseline=gae", "baseline=gae", "baseline=auto suits it"),
    ("baseline=grpo", "baseline=grpo", "memory=co_resident has a critic"),
    ("baseline=nope", "baseline=nope", "auto, dr_grpo, gae, grpo, per_step, reinforce_pp, rloo"),
    (
        "memory=critic_free baseline=per_step baseline.group_size=3",
        "baseline.group_size=3",
        "divide num_envs=8",
    ),
    ("baseline.group_size=4", "baseline.group_size=4", "option of baseline=grpo or dr_grpo or"),
    ("policy_loss=gspo", "policy_loss=gspo", "needs whole episodes: memory=critic_free, or texts"),
    ("aggregation=sequence_sum", "aggregation=sequence_sum", "needs whole episodes"),
    ("memory=critic_free value_epsilon=0.2", "value_epsilon=0.2", "has no critic for it"),
    ("memory=critic_free gae_lambda_value=1", "gae_lambda_value=1", "has no critic for it"),
    ("memory=critic_free gae_lambda_policy=0", "gae_lambda_policy=0", "has no critic for it"),
    ("memory=critic_free compile=always", "compile=always", "cannot be had with whole episodes"),
    (
        "env=cartpole_masked network=gru compile=always",
        "compile=always",
        "cannot be had with a network that reads sequences",
    ),
    ("gae_lambda_policy=2", "gae_lambda_policy=2", "<= 1, or none"),
    (
        "env=cartpole_masked env.backend=gymnasium",
        "env.backend=gymnasium",
        "is not in Gymnasium: choose torch",
    ),
    ("env=text num_minibatches=3", "num_minibatches=3", "sequences stay whole; nearest that does"),
    ("env=text num_steps=5", "num_steps=5", "must be >= 9: the longest text"),
    ("env=text env.backend=torch", "env.backend=torch", "has no effect on texts"),
    ("env=text env.kl_target=0", "env.kl_target=0", "> 0, or none"),
    ("env=text env.task=poem", "env.task=poem", "grammar, arithmetic, prompts"),
    ("env=text env.task=prompts", "env.prompts", "needs a JSONL file"),
    ("env=text env.prompts=x.jsonl", "env.prompts=x.jsonl", "needs env.task=prompts"),
    ("env=text env.reward=not_there:f", "env.reward=not_there:f", "cannot import not_there"),
    ("env=text env.reward=json:nothing", "env.reward=json:nothing", "json has no function nothing"),
    ("env=text env.reward=json", "env.reward=json", "must be module:function"),
    ("name=", "name=", "1 to 64 letters"),
    ("name=${unused_dir:outputs/runs/x}", "name=", "1 to 64 letters"),
    ("name=${oc.env:NOT_THERE_AT_ALL}", "name=${oc.env:NOT_THERE_AT_ALL}", "not found"),
]
# Of other steps than the composition of a run.
REFUSED_COMMANDS = [
    ("epsilon=0.1,0.2", "epsilon=0.1,0.2", "add -m"),
    ("epsilon", "epsilon", "key=value"),
    ("epsilon=[1", "epsilon=[1", "cannot be read"),
    ("=3", "=3", "names no key"),
    ("hydra.foo=1", "hydra.foo=1", "no such key"),
    ("env=lunarlander env.kwargs={continuous:true}", "env.kwargs", "+env.kwargs"),
    ("network=null", "network=null", "must be one of gpt_1b, gpt_7b"),
    ("hydra.job.chdir=true", "hydra.job.chdir=true", "must be false"),
    ("hydra.output_subdir=../..", "hydra.output_subdir=../..", "without .."),
    ("study.num_trials=5", "study.num_trials=5", "add study=default"),
    ("study=nope", "study=nope", "one of default"),
    ("sweep=epsilo", "sweep=epsilo", "did you mean epsilon?"),
    ("sweep=epsilon study.num_trials=0", "study.num_trials=0", ">= 1"),
    ("sweep=epsilon hydra/launcher=stacked", "hydra/launcher=stacked", "study.executor=stacked"),
]
REFUSED_GRIDS = [
    ("epsilon=0.1,-1", "epsilon=-1", "> 0, or none"),
    ("epsilon=0.1,0.2 memory=co_resident,nope", "memory=nope", "co_resident"),
    ("epsilon=interval(0,1)", "epsilon=interval(0,1)", "belongs to a study"),
    ("epsilon=interval(0.1,none)", "epsilon=interval(0.1,none)", "cannot hold none"),
    ("env=cartpole,pendulum num_envs=8,0", "num_envs=0", ">= 1"),
    ("seed=range(0,10,0)", "seed=range(0,10,0)", "a step other than 0"),
    ("seed=range(1,inf)", "seed=range(1,inf)", "finite ends"),
    ("seed=range(5,1)", "seed=range(5,1)", "holds no value"),
    ("seed=range(1,100000000)", "seed=range(1,100000000)", "99,999,999 values; at most 10,000"),
    (
        "seed=range(0,2000) gamma=0.9,0.91,0.92,0.93,0.94,0.95",
        "seed=range(0,2000)",
        "12,000 jobs; at most 10,000",
    ),
    ("network=glob(nothing*)", "network=glob(nothing*)", "holds no value"),
    ("seed=1,2 hydra.sweep.subdir=../../../x", "hydra.sweep.subdir=../../../x", "without .."),
    ("seed=1,2 hydra.sweep.subdir=.", "hydra.sweep.subdir=.", "must be a folder below"),
    (
        "seed=1,2 gamma=0.9,0.8 hydra.sweep.subdir=s${seed}",
        "hydra.sweep.subdir=s",
        "jobs 0 and 1 would share",
    ),
    ("seed=1,2 'hydra.sweep.subdir=${foo}'", "hydra.sweep.subdir=${foo}", "'foo' not found"),
    ("seed=1,2 hydra/sweeper=nope", "hydra/sweeper=nope", "one of basic, ppo_lab"),
    ("seed=1,2 hydra/launcher=stackd", "hydra/launcher=stackd", "did you mean stacked?"),
    ("hydra.verbose=true,false", "hydra.verbose=true,false", "not to its jobs"),
    ("epsilon=0.3,0.1 epsilon_high=0.2", "epsilon_high=0.2", "at least epsilon=0.3"),
    ("tracking.project=a,b/c", "tracking.project=b/c", "128"),
    (
        "seed=1,2 hydra/launcher=stacked hydra.launcher.num_workers=0",
        "hydra.launcher.num_workers=0",
        ">= 1",
    ),
]
LONG = "tracking.notes=" + "x" * 150
# Of a study of epsilon=interval(0.1,0.3).
REFUSED_STUDIES = [
    ("study.objective=5", "study.objective=5", "a text, or a list of texts"),
    ("study.direction=5", "study.direction=5", "a text, or a list of texts"),
    ("study.direction=up", "study.direction=up", "maximize"),
    ("study.constraints=5", "study.constraints=5", "must be a list"),
    ("study.constraints=[1]", "study.constraints=[1]", "a limit such as"),
    ("study.constraints=[foo<=3]", "study.constraints=[foo<=3]", "cannot be read; quote it"),
    ("study.space=5", "study.space=5", "Dict"),
    ("study.space.lr=5", "lr=5", "must be choice(a, b)"),
    ("study.space.lr={a:1}", "study.space.lr={a:1}", "cannot be read"),
    ("study.space.epsilon=interval(0.1,0.2)", "study.space.epsilon", "is searched as well"),
    ("study.space.epslon=interval(0.1,0.2)", "epslon", "did you mean epsilon?"),
    ("epsilon=0.2", "epsilon=0.2", "is searched as well: epsilon=interval(0.1,0.3)"),
    ("study.sampler=5", "study.sampler=5", "Dict"),
    ("study.sampler=null", "study.sampler=null", "must have a value"),
    ("study.pruner._target_=os.system", "study.pruner._target_=os.system", "optuna.pruners"),
    ("study.confirm=5", "study.confirm=5", "ConfirmConfig"),
    ("study.confirm.top=-1", "study.confirm.top=-1", ">= 0 and <= 1,000"),
    ("study.confirm.seeds=1", "study.confirm.seeds=1", ">= 2"),
    ("study.name=[a]", "study.name=[a]", "string"),
    ("study.name=a/b", "study.name=a/b", "letters, digits"),
    ("study.enqueue=5", "study.enqueue=5", "must be a list"),
    ("study.enqueue=[5]", "study.enqueue=[5]", "a list of points"),
    ("study.enqueue=[{a:1}]", "study.enqueue.a=1", "not in the search space"),
    ("study.conditions=5", "study.conditions=5", "Dict"),
    ("study.conditions.epsilon=5", "study.conditions.epsilon=5", "a text, or a list of texts"),
    ("study.storage=foo://bar", "study.storage=...", "postgresql://...@host/database, not foo"),
    ("study.seed=-1", "study.seed=-1", ">= 0"),
    ("study.prune_confidence=2", "study.prune_confidence=2", "below 1"),
    ("study.num_trials=1000000000", "study.num_trials=1000000000", "<= 1,000,000"),
    ("study.num_seeds=1000000", "study.num_seeds=1000000", "<= 1,000"),
    ("study.num_seeds=choice(1,2)", "study.num_seeds=choice(1,2)", "a key of the whole study"),
    ("study/sampler=tpe,gp", "study/sampler=tpe,gp", "a key of the whole study"),
    ("study/sampler=tpo", "study/sampler=tpo", "did you mean tpe?"),
    ("study.num_workers=1000000", "study.num_workers=1000000", "<= 10,000"),
    ("study.max_lanes=0", "study.max_lanes=0", ">= 1"),
    ("study.lease_s=inf", "study.lease_s=inf", "seconds above 0"),
    ("study.storage_timeout_s=0", "study.storage_timeout_s=0", "seconds above 0"),
    ("study.executor=threads", "study.executor=threads", "processes, stacked"),
    ("study.aggregate=median", "study.aggregate=median", "mean, iqm"),
    ("study.num_trial=5", "study.num_trial=5", "did you mean study.num_trials?"),
    ("seed=range(0,1000000000)", "seed=range(0,1000000000)", "at most 10,000"),
    ("study.space.seed=range(0,9,0)", "seed=range(0,9,0)", "a step other than 0"),
]


@pytest.fixture(scope="module", autouse=True)
def empty(tmp_path_factory):
    """An empty folder, in which the commands of this file are checked, and stay without a trace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("empty"))
        yield
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def hydra(empty):
    """Hydra as the command opens it, except that it reads the files of a job once."""
    register()
    with open_hydra() as opened:
        loader, known = opened.config_loader, {}
        read = loader.load_sweep_config

        def read_once(command, typed):
            key = command.study is None, str(command.hydra.overrides.hydra), *typed
            if key not in known:
                known[key] = read(command, typed)
            return copy.deepcopy(known[key])

        loader.load_sweep_config = read_once
        yield opened


@pytest.fixture(scope="module")
def studies(hydra):
    """The composer of a study's command."""
    return Composer(hydra.config_loader, compose_command(hydra, ["study=default"]))


@contextmanager
def refused(words, *named):
    """Check that what is inside refuses ``words`` in one line with all that is ``named``."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of every kind
        yield
    message = explain(caught.value, words)
    assert message is not None, f"not explained: {caught.value!r}"
    assert [text for text in named if text not in message] == []
    assert len(message.splitlines()) == 1


def check(hydra, command, *named, is_multirun=False):
    """Check that a command is refused in one line with all that is ``named``."""
    words = shlex.split(command)
    with refused(words, *named):
        check_command(hydra, words, is_multirun=is_multirun, check_study=check_study)


def rows(table):
    return pytest.mark.parametrize(
        ("command", "named", "allowed"), table, ids=[row[0] for row in table]
    )


@rows(REFUSED)
def test_a_wrong_value_is_refused(command, named, allowed):
    words = shlex.split(command)
    with refused(words, named, allowed), default_composer().composed(words) as composed:
        load(composed)


@rows(REFUSED_COMMANDS)
def test_a_wrong_command_is_refused(hydra, command, named, allowed):
    check(hydra, command, named, allowed)


@rows(REFUSED_GRIDS)
def test_a_grid_is_refused(hydra, command, named, allowed):
    check(hydra, command, named, allowed, is_multirun=True)


@rows(REFUSED_STUDIES)
def test_a_study_is_refused(hydra, studies, command, named, allowed):
    words = ["study=default", "epsilon=interval(0.1,0.3)", command]
    with refused(words, named, allowed):
        fixed = [word for word in words if not parse(word).is_sweep_override()]
        with studies.composed(fixed) as composed:
            composed.hydra.overrides.task = words
            check_dimensions(composed, words)
            check_study(composed, hydra.config_loader)


@pytest.mark.parametrize(
    "word",
    [
        "+env.kwargs.url=http://me:hunter2@host/x", "tracking.notes=https://me:hunter2@host",
        "name=hf_hunter2hunter2hunter2", "+hydra.job.env_set.WANDB_API_KEY=hunter2",
    ],
)  # fmt: skip
def test_a_credential_is_refused_and_not_repeated(hydra, word):
    words = ["env=gymnasium", "env.id=CartPole-v1", word]
    with pytest.raises(ConfigError) as caught:
        check_command(hydra, words, is_multirun=False)
    message = explain(caught.value, words)
    assert "hunter2" not in message
    assert "..." in message


def test_a_secret_variable_is_not_copied_into_the_config(hydra, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hunter2hunter2")
    line = "ppo_lab: hydra.job.env_set.WANDB_API_KEY=...: sounds secret"
    check(hydra, "hydra.job.env_copy=[WANDB_API_KEY]", line)


def test_a_run_larger_than_the_machine_is_refused(hydra, monkeypatch):
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**18}  # 1 GiB
    monkeypatch.setattr("ppo_lab.config.checks.os.sysconf", sizes.get)
    # Two networks of 20,000 x 20,000 and (4 + 1 + 1) x 20,000 parameters, 16 B each: 11.9 GiB.
    line = "network=...: needs 11.9 GiB of memory or more; this machine has 1.0 GiB"
    check(hydra, "device=cpu network.hidden=[20000,20000]", line)
    # 2^25 rows of 4 observations and six numbers, 4 B each.
    many = "device=cpu network=tiny num_envs=32768 num_steps=1024 total_steps=40000000"
    check(hydra, many, "num_envs=32768: needs 1.2 GiB of memory or more")


def test_a_folder_whose_name_is_too_long_is_refused(hydra):
    command = f"{LONG} {LONG.replace('notes', 'entity')} seed=1,2"
    command += " 'hydra.sweep.subdir=${hydra.job.override_dirname}'"
    check(hydra, command, "a folder's name has at most 255 bytes", is_multirun=True)


def test_a_key_of_the_sweep_that_is_fixed_leaves_the_search_and_this_is_said(hydra, caplog):
    words = ["sweep=ppo", "lr=1e-3"]
    assert check_command(hydra, words, is_multirun=False, check_study=check_study).jobs == []
    assert "lr=1e-3 is fixed: this study no longer searches lr" in caplog.text


@pytest.mark.parametrize(
    "arguments", [["epslon=0.1"], ["epsilon=0.1,-1", "-m"], ["name=${unused_dir:outputs/runs/x}"]]
)
def test_the_command_exits_with_2_and_leaves_nothing_behind(tmp_path, arguments):
    done = ppo_lab(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ppo_lab: ")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
