"""Contracts over every file of sweeps/."""

import pytest
import yaml
from sweep_helpers import make_base

from ppo_lab.config import Config
from ppo_lab.paths import CONF_DIR, SWEEPS_DIR
from ppo_lab.study_config import Aggregate, StudyConfig
from ppo_lab.sweep.objective import parse_constraints, parse_objectives
from ppo_lab.sweep.samplers import check_pruner, check_sampler
from ppo_lab.sweep.space import read_space

SWEEPS = sorted(SWEEPS_DIR.glob("*.yaml"))
NEED_A_GPU = {"device=cuda"}


def read(path):
    """Return a study's keys, the run's fixed overrides, its sampler's and its pruner's YAML."""
    content = yaml.safe_load(path.read_text())
    chosen = {"/study/sampler": "tpe", "/study/pruner": "median"}
    for entry in content["defaults"]:
        ((key, option),) = entry.items()
        chosen[key.removeprefix("override ")] = option
    fixed = [
        f"{key.removeprefix('/')}={option}"
        for key, option in chosen.items()
        if not key.startswith("/study")
    ]
    fixed += [f"{k}={v}" for k, v in content.items() if k not in ("defaults", "study", "hydra")]
    nodes = [
        yaml.safe_load((CONF_DIR / key.removeprefix("/") / f"{chosen[key]}.yaml").read_text())
        for key in ("/study/sampler", "/study/pruner")
    ]
    return content["study"], fixed, *nodes


def test_the_shipped_sweeps():
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
def test_a_shipped_study_can_run_at_every_corner(path):
    study, fixed, sampler, pruner = read(path)
    assert set(study) <= set(StudyConfig.__dataclass_fields__)
    base = make_base(*fixed)
    space = read_space(study["space"], study.get("when", {}), base)
    space.check(base)
    objectives = parse_objectives(
        study.get("objective", "final_return"),
        study.get("direction", "maximize"),
        Aggregate(study.get("aggregate", "mean")),
        study.get("num_seeds", 1),
    )
    parse_constraints(study.get("constraints", []))
    for point in study.get("start", []):
        space.start(point, base)
    num_starts = 1 + len(study.get("start", []))
    config = base.config()
    assert isinstance(config, Config)
    check_sampler(
        sampler, space, num_trials=study["num_trials"], num_starts=num_starts,
        num_objectives=len(objectives),
    )  # fmt: skip
    check_pruner(
        pruner, confidence=0.95, total_steps=config.total_steps, num_objectives=len(objectives)
    )


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_study_suits_another_task(path):
    study, fixed, _, _ = read(path)
    base = make_base(*fixed, "env=pendulum")  # 4 environments, 64 minibatches
    read_space(study["space"], study.get("when", {}), base).check(base)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_defaults_lie_inside_a_shipped_space(path):
    # Then trial 0 teaches the sampler, too.
    study, fixed, _, _ = read(path)
    base = make_base(*fixed)
    assert read_space(study["space"], study.get("when", {}), base).defaults(base).is_inside
