"""The progress of a study as a live table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ppo_lab.grids.live_table import LiveScreen
from ppo_lab.studies.display.progress import StudyProgress
from ppo_lab.studies.store.outcome import Counts

__all__ = ["LiveTable"]


@dataclass(kw_only=True)
class LiveTable(StudyProgress):
    """Shows the table until it is closed."""

    console: Console = field(default_factory=lambda: Console(stderr=True))

    def __post_init__(self) -> None:
        """Show nothing yet."""
        self._screen = LiveScreen(self, self.console)

    def open(self, name: str, folder: Path, counts: Counts, max_running: int) -> None:
        """Put the table on the screen."""
        super().open(name, folder, counts, max_running)
        self._screen.open()

    def refresh(self) -> None:
        """Redraw."""
        self._screen.refresh()

    def close(self) -> None:
        """Remove the table from the screen."""
        self._screen.close()
