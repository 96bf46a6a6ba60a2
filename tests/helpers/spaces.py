"""A study's base run as the engine composes it."""

from ppo_lab.studies.definition.base_run import BaseRun
from ppo_lab.studies.definition.space import Space, read_space
from tests.helpers.trainers import default_composer


def make_base(*fixed: str) -> BaseRun:
    return BaseRun(default_composer(), fixed)


def make_space(base: BaseRun | None = None, when: dict | None = None, **space: str) -> Space:
    return read_space(space, when or {}, base or make_base())
