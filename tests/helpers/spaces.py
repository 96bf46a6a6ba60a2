"""A study's base run as the engine composes it."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from ppo_lab.config.compose import register
from ppo_lab.studies.definition.base_run import BaseRun, Composed
from ppo_lab.studies.definition.space import Space, read_space
from ppo_lab.utils.paths import CONF_DIR


def make_base(*fixed: str) -> BaseRun:
    register()

    def composed(overrides: Sequence[str]) -> Composed:
        with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
            cfg = compose("config", [*fixed, *overrides], return_hydra_config=True)
        choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
        with open_dict(cfg):
            del cfg["hydra"]
        return Composed(cfg, choices)

    return BaseRun(composed)


def make_space(base: BaseRun | None = None, when: dict | None = None, **space: str) -> Space:
    return read_space(space, when or {}, base or make_base())
