"""A run's own files under a full disk and beside sinks that fail."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppo_lab.tracking import (
    Progress,
    RunInfo,
    SafeSink,
    Sink,
    Terminal,
    Tracker,
    TrackingConfig,
    TrackingMode,
)


def describe(folder: Path) -> RunInfo:
    return RunInfo(folder, "id", "name", None, (), 1000, {})


@contextmanager
def no_file_above(num_bytes: int) -> Iterator[None]:
    """Let the system refuse to write beyond ``num_bytes`` of any file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files_tracker(folder: Path, other: Sink | None = None, log_every: int = 1) -> Tracker:
    """Return a tracker that has started, with ``other`` as its second sink."""
    config = TrackingConfig(mode=TrackingMode.disabled, log_every=log_every)
    tracker = Tracker(config, folder / "outputs", Progress(Terminal.none))
    if other is not None:
        tracker._wandb = SafeSink(other)
    tracker.start(describe(folder))
    return tracker


class Broken(Sink):
    """Raises in the named methods, and records calls."""

    def __init__(self, *broken: str, error: type[BaseException] = OSError) -> None:
        self.broken, self.error = broken, error
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise self.error("no space\nleft")

    def start(self, run: object) -> None:
        self._call("start")

    def record(self, record: object) -> None:
        self._call("record")

    def finish(self, summary: object, exit_code: object) -> None:
        self._call("finish")
