"""Interface of a text task: prompts, the reward of a finished text, and what is not rewarded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ppo_lab.envs.text.tokenizers import Tokenizer

__all__ = ["TextTask"]


class TextTask(ABC):
    """Texts that a policy completes; a text is a prompt and what follows, up to its end."""

    tokenizer: Tokenizer
    prompts: Sequence[Sequence[int]]
    """Tokens of each prompt, at least one; episodes draw from them uniformly."""
    longest: int
    """Most tokens of a text of the corpus."""

    @abstractmethod
    def rewards(self, texts: Sequence[str]) -> list[float]:
        """Return the reward of each text."""

    def quality(self, texts: Sequence[str]) -> dict[str, float]:
        """Return what says whether ``texts`` are still good, and is never rewarded; shares."""
        return {"distinct_frac": len(set(texts)) / len(texts)}

    @abstractmethod
    def corpus(self, seed: int, number: int) -> list[str]:
        """Return ``number`` texts to pretrain the reference on; a pure function of ``seed``."""

    def corpus_tokens(self, seed: int, number: int, num_tokens: int) -> Tensor:
        """Return the corpus as int64 (number, num_tokens), padded behind each text's end."""
        assert self.longest <= num_tokens
        rows = [self.tokenizer.encode(text) for text in self.corpus(seed, number)]
        pad = [self.tokenizer.pad] * num_tokens
        return torch.tensor([row + pad[len(row) :] for row in rows])
