"""Sums of memory that a person can check: what is held at a moment, line by line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ppo_lab.tally import Category

__all__ = ["Moment", "Term", "times"]


class Term(NamedTuple):
    """One line of the sum."""

    category: Category
    name: str
    num_bytes: int
    formula: str
    """Such as ``4 B x 2,345 parameters``."""


@dataclass(frozen=True)
class Moment:
    """What is held at one moment."""

    name: str
    terms: tuple[Term, ...]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(term.num_bytes for term in self.terms)


def times(category: Category, name: str, num_bytes: int, count: int, of: str) -> Term:
    """Return ``count`` things of ``num_bytes`` each."""
    return Term(category, name, num_bytes * count, f"{num_bytes:,} B x {count:,} {of}")
