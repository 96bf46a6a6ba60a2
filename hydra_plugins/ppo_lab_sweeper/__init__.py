"""Hydra's door to ppo_lab's studies; Hydra 1.3 takes a sweeper from this namespace only."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

__all__ = ["StudySweeper"]


class StudySweeper(Sweeper):
    """Hands a composed command over to ``ppo_lab.studies``, which is imported only then."""

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,  # noqa: ARG002 - a trial is no Hydra job
        config: DictConfig,
    ) -> None:
        """Keep what the study is made from."""
        self._loader, self._config = hydra_context.config_loader, config

    def sweep(self, arguments: list[str]) -> Any:  # noqa: ANN401, ARG002 - as Hydra declares it
        """Run the study up to its total of trials."""
        from ppo_lab.studies.command import run_study

        return run_study(self._config, self._loader)


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="ppo_lab",
    node={"_target_": "hydra_plugins.ppo_lab_sweeper.StudySweeper"},
    provider="ppo_lab",
)
