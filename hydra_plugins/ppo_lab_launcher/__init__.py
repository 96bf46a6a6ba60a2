"""Hydra plugins for grids: ``hydra/launcher=stacked``, and the sweeper of all launchers.

Hydra finds plugins in this namespace only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins import basic_sweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

__all__ = ["GridSweeper", "StackedLauncher"]


class StackedLauncher(Launcher):
    """Run a grid's jobs with ``ppo_lab.grids``, which is imported on launch."""

    def __init__(self, num_workers: int | str, max_lanes: int | str) -> None:
        """Store the options: numbers, or ``auto``."""
        self._num_workers, self._max_lanes = num_workers, max_lanes

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,  # noqa: ARG002 - trains one job alone
        config: DictConfig,
    ) -> None:
        """Store what jobs are composed from."""
        self._context, self._config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Train the jobs as lanes and return their results in order."""
        from ppo_lab.grids.stacked import run_stacked_grid

        return run_stacked_grid(
            self._context,
            self._config,
            job_overrides,
            initial_job_idx,
            num_workers=self._num_workers,
            max_lanes=self._max_lanes,
        )


_NODE = {
    "_target_": "hydra_plugins.ppo_lab_launcher.StackedLauncher",
    "num_workers": "auto",
    "max_lanes": "auto",
}
ConfigStore.instance().store("stacked", _NODE, group="hydra/launcher", provider="ppo_lab")


class GridSweeper(basic_sweeper.BasicSweeper):
    """Hydra's own sweeper, which reads each combination of config files once, not once per job."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Give the launcher a loader that composes a job in 10 ms; Hydra's takes 0.15 s."""
        from ppo_lab.config.composer import GridLoader

        loader = GridLoader(hydra_context.config_loader, config)
        context = HydraContext(loader, hydra_context.callbacks)
        super().setup(hydra_context=context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs, which are ``arguments``: the command has expanded and checked them."""
        from ppo_lab.grids.start import Jobs

        assert isinstance(arguments, Jobs)
        assert self.launcher is not None
        OmegaConf.save(self.config, Path(self.config.hydra.sweep.dir) / "multirun.yaml")
        for first, batch in arguments.batches(self.max_batch_size):
            for result in self.launcher.launch(batch, initial_job_idx=first):
                _ = result.return_value  # raises what a job raised


# Replaces the default; a study chooses its own sweeper in conf/study/default.yaml.
_SWEEPER = basic_sweeper.BasicSweeperConf(_target_="hydra_plugins.ppo_lab_launcher.GridSweeper")
ConfigStore.instance().store("basic", _SWEEPER, group="hydra/sweeper", provider="ppo_lab")
