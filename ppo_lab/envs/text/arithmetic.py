"""Sums, such as ``3+8=11.``: a reward that is exact, for one token a digit.

The reference has read right answers and others that are off by up to 3. So it knows about where the
right one is, and is wrong more often than not: reinforcement learning has to choose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppo_lab.envs.text.task import TextTask
from ppo_lab.envs.text.tokenizers import BOS, END, WordTokenizer

__all__ = ["ArithmeticTask"]

_RIGHT_SHARE = 0.5  # of the corpus's answers
_MOST_OFF = 3  # of the others; with any number instead, 1000 steps teach no sums


class ArithmeticTask(TextTask):
    """Complete ``a+b=``, with a and b from 0 to ``max_summand``."""

    def __init__(self, max_summand: int) -> None:
        """List all prompts, (max_summand + 1)^2."""
        self._max = max_summand
        self.tokenizer = WordTokenizer("0123456789+=", separator="")
        numbers = range(max_summand + 1)
        self.prompts = [self.tokenizer.encode(f"{a}+{b}=") for a in numbers for b in numbers]
        longest = f"{max_summand}+{max_summand}={2 * max_summand + _MOST_OFF}{END}"
        self.longest = len([BOS, *longest])

    def rewards(self, texts: Sequence[str]) -> list[float]:
        """Return 1 for each right answer, written without leading zeros, and 0 for others."""
        return [float(_is_right(text)) for text in texts]

    def quality(self, texts: Sequence[str]) -> dict[str, float]:
        """See ``TextTask.quality``; adds the share of right answers."""
        return {"exact_frac": sum(self.rewards(texts)) / len(texts)} | super().quality(texts)

    def corpus(self, seed: int, number: int) -> list[str]:
        """Return random sums; half are right, and the others off by 1 to 3."""
        generator = np.random.default_rng(seed)
        a, b = generator.integers(self._max + 1, size=(2, number))
        off = generator.integers(1, _MOST_OFF + 1, size=number)
        off = np.where((generator.random(number) < 0.5) & (off <= a + b), -off, off)
        answers = a + b + np.where(generator.random(number) < _RIGHT_SHARE, 0, off)
        return [f"{x}+{y}={z}{END}" for x, y, z in zip(a, b, answers, strict=True)]


def _is_right(text: str) -> bool:
    """Return whether a text is a whole sum with the right answer."""
    prompt, _, answer = text.partition("=")
    a, _, b = prompt.partition("+")
    return answer == f"{int(a) + int(b)}{END}"
