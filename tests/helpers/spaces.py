"""A study's base run as the engine composes it."""

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ppo_lab.config.compose import register
from ppo_lab.config.composer import Composer
from ppo_lab.studies.definition.base_run import BaseRun
from ppo_lab.studies.definition.space import Space, read_space
from ppo_lab.utils.paths import CONF_DIR


def make_base(*fixed: str) -> BaseRun:
    register()
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        command = compose("config", return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
    return BaseRun(Composer(loader, command), fixed)


def make_space(base: BaseRun | None = None, when: dict | None = None, **space: str) -> Space:
    return read_space(space, when or {}, base or make_base())
