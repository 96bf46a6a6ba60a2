"""Hydra sweeper that runs a study. Hydra 1.3 finds sweepers in this namespace only."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

__all__ = ["StudySweeper"]


class StudySweeper(Sweeper):
    """Runs a composed command as a study; imports ``ppo_lab.studies`` only then."""

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,  # noqa: ARG002 - a trial is no Hydra job
        config: DictConfig,
    ) -> None:
        """Store the composed command and its loader."""
        self._loader, self._config = hydra_context.config_loader, config

    def sweep(self, arguments: list[str]) -> Any:  # noqa: ANN401, ARG002 - as Hydra declares it
        """Run the study up to its total number of trials."""
        from ppo_lab.studies.command import run_study

        return run_study(self._config, self._loader)


_NODE = {"_target_": "hydra_plugins.ppo_lab_sweeper.StudySweeper"}
ConfigStore.instance().store("ppo_lab", _NODE, group="hydra/sweeper", provider="ppo_lab")
