"""Runs from checked configs to finished folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ppo_lab.config.run import Config
from ppo_lab.runner.entry import GroupView, RunGroup
from ppo_lab.runner.run_record import RunOutput, Status
from ppo_lab.runner.stack import Stack

__all__ = ["RunOutput", "Status", "run_in_folder", "run_stack"]


def run_in_folder(
    config: Config, folder: Path, *, overrides: Sequence[str], group: str | None = None
) -> dict[str, Any]:
    """Train ``config`` alone; see ``run_stack``."""
    (summary,) = run_stack([config], [RunOutput(folder, overrides, group)])
    return summary


def run_stack(
    configs: Sequence[Config],
    destinations: Sequence[RunOutput],
    should_stop: Callable[[GroupView], str | None] | None = None,
    *,
    is_forecast: bool = False,
    planned_steps: int | None = None,
) -> list[dict[str, Any]]:
    """Train ``configs`` as one stack, leave each lane in its folder, and return the summaries.

    ``should_stop`` is asked after every iteration; a reason it gives ends the run with status
    ``pruned``. With ``is_forecast`` the summaries hold the forecast even where nothing is profiled;
    ``planned_steps`` as ``RunGroup`` takes them.
    An exception of the run becomes summaries of status ``failed`` or ``out_of_memory``; Ctrl-C and
    SystemExit are raised again once the trackers are closed. The memory of a run that failed is
    free again on return, so that the next one in this process has all of it.
    """
    entry = _Together(
        configs, destinations, should_stop, is_forecast=is_forecast, planned_steps=planned_steps
    )
    stack = Stack(len(configs), configs[0].tracking.terminal)
    stack.put(entry)
    while stack.has_work:
        stack.step()
    stack.close()
    return entry.summaries


class _Together(RunGroup):
    """Configs that end together, when ``should_stop`` says so or they have spent their steps."""

    def __init__(
        self,
        configs: Sequence[Config],
        destinations: Sequence[RunOutput],
        should_stop: Callable[[GroupView], str | None] | None,
        *,
        is_forecast: bool,
        planned_steps: int | None,
    ) -> None:
        super().__init__(
            configs, destinations, is_forecast=is_forecast, planned_steps=planned_steps
        )
        self._should_stop = should_stop

    def should_stop(self, standing: GroupView) -> str | None:
        return None if self._should_stop is None else self._should_stop(standing)
