"""Options of a run's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from ppo_lab.config.checks import check_whole
from ppo_lab.utils.errors import check_number

__all__ = ["CheckpointConfig"]


@dataclass(kw_only=True)
class CheckpointConfig:
    """When a run writes checkpoints, from which it can be resumed."""

    every_s: float = 60.0
    """Seconds between checkpoints. 0: only when the run ends or a signal stops it."""
    boundary_steps: int = 100_000
    """Environment steps after which environments whose state cannot be read are restarted; a run
    can be resumed from there only. Fewer lose less work, but cut episodes more often. Environments
    with an exact state (native, classic control, MuJoCo) are never restarted."""

    def check(self) -> None:
        """Raise ``ConfigError`` for a value that cannot be used."""
        check_number("checkpoint.every_s", self.every_s, at_least=0.0)
        check_whole("checkpoint.boundary_steps", self.boundary_steps)

    def is_boundary(self, iteration: int, num_rows: int) -> bool:
        """Return whether a boundary lies in ``iteration``, counted from 1, of ``num_rows`` steps.

        Example:
            >>> [CheckpointConfig(boundary_steps=5).is_boundary(i, 2) for i in range(1, 6)]
            [False, False, True, False, True]
        """
        before, after = ((i * num_rows) // self.boundary_steps for i in (iteration - 1, iteration))
        return after > before
