"""Contracts over every study of sweeps/; the grids there have theirs in tests/cli."""

import pytest
import yaml

from ppo_lab.config.compose import check_jobs, register
from ppo_lab.studies.command import check_study
from ppo_lab.studies.definition.plan import make_plan
from ppo_lab.studies.definition.space import read_space
from ppo_lab.utils.paths import SWEEPS_DIR
from tests.helpers.spaces import make_base

SWEEPS = [
    path
    for path in sorted(SWEEPS_DIR.glob("*.yaml"))
    if "study" in yaml.safe_load(path.read_text())
]
NEED_A_GPU = {"device=cuda"}


def read(path):
    """Return a study's keys and the run's fixed overrides."""
    content = yaml.safe_load(path.read_text())
    chosen = {key.removeprefix("override /"): option for entry in content["defaults"]
              for key, option in entry.items()}  # fmt: skip
    fixed = [f"{key}={option}" for key, option in chosen.items() if not key.startswith("study")]
    fixed += [f"{k}={v}" for k, v in content.items() if k not in ("defaults", "study", "hydra")]
    return content["study"], fixed


def test_the_shipped_studies():
    assert [path.stem for path in SWEEPS] == [
        "epsilon", "memory_study", "network", "pareto", "ppo"
    ]  # fmt: skip


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_begins_with_its_command_and_when_to_choose_it(path):
    command, why = path.read_text().splitlines()[:2]
    words = command.split()
    assert words[:5] == ["#", "python", "-m", "ppo_lab", f"sweep={path.stem}"]
    assert set(words[5:]) <= NEED_A_GPU
    assert len(why) > 30


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_command_finds_a_shipped_study_fit_at_every_corner(path, tmp_path, monkeypatch):
    # As a person's command is checked: keys, sampler, pruner, a Config at each corner.
    monkeypatch.chdir(tmp_path)
    register()
    plans = []

    def checked(command, loader):
        check_study(command, loader)
        plans.append(make_plan(command, loader))

    jobs = check_jobs(
        [f"sweep={path.stem}"],
        is_multirun=False, config_dir=None, config_name=None, check_study=checked,
    )  # fmt: skip
    (plan,) = plans
    assert jobs == []  # a study's trials are sampled later
    assert plan.name == path.stem
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_study_suits_another_task(path):
    study, fixed = read(path)
    base = make_base(*fixed, "env=pendulum")  # 4 environments, 64 minibatches
    read_space(study["space"], study.get("conditions", {}), base).check(base)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_defaults_lie_inside_a_shipped_space(path):
    # Then trial 0 teaches the sampler, too.
    study, fixed = read(path)
    base = make_base(*fixed)
    assert read_space(study["space"], study.get("conditions", {}), base).defaults(base) is not None
