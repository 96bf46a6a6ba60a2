"""Observers of a trainer's phases: what measures a run without being part of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

__all__ = ["PhaseObserver", "PhaseObservers"]


class PhaseObserver:
    """Observes the phases of a trainer's iterations; by default it does nothing."""

    def phase(self, name: str, *inputs: object) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return a context for the phase ``name``, which is called with ``inputs``."""
        return nullcontext()

    def finish(self, name: str, result: object) -> None:
        """Receive the result of the phase ``name``, still within its context."""

    def optimizer_step(self) -> AbstractContextManager[None]:
        """Return a context for one step of the optimizer."""
        return nullcontext()

    def read(self) -> dict[str, float]:
        """Return the iteration's measurements as metrics; the device must be idle."""
        return {}


class PhaseObservers(PhaseObserver):
    """Several observers as one, the first outermost."""

    def __init__(self, observers: Sequence[PhaseObserver]) -> None:
        """Notify ``observers`` in this order."""
        self.members = tuple(observers)

    def phase(self, name: str, *inputs: object) -> AbstractContextManager[None]:
        """Return the contexts of all observers as one."""
        return _all(observer.phase(name, *inputs) for observer in self.members)

    def finish(self, name: str, result: object) -> None:
        """Pass the result to every observer."""
        for observer in self.members:
            observer.finish(name, result)

    def optimizer_step(self) -> AbstractContextManager[None]:
        """Return the contexts of all observers as one."""
        return _all(observer.optimizer_step() for observer in self.members)

    def read(self) -> dict[str, float]:
        """Return all observers' metrics."""
        return {key: value for each in self.members for key, value in each.read().items()}


@contextmanager
def _all(contexts: Iterable[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
