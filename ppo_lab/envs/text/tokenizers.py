"""Tokenizers: they map a text to the tokens of a policy and back."""

from __future__ import annotations

import functools
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppo_lab.utils.errors import ConfigError

__all__ = ["BOS", "END", "PAD", "PretrainedTokenizer", "Tokenizer", "WordTokenizer"]

PAD, BOS, END = "<pad>", "<bos>", "."
"""The first words of every ``WordTokenizer``. A text without the last one was cut off."""


class Tokenizer(ABC):
    """A vocabulary of ``size`` tokens, three of them special."""

    size: int
    pad: int  # after the end of a text
    end: int  # the last token of a text

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text that goes on; a token for the beginning comes first.

        Raises:
            ValueError: A word is unknown.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ``tokens``, without the one for the beginning."""


class WordTokenizer(Tokenizer):
    """A list of words, which a text separates by spaces, or of single characters."""

    pad, bos, end = range(3)

    def __init__(self, words: Sequence[str], separator: str = " ") -> None:
        """Number ``words`` after the three special ones; an empty ``separator``: characters."""
        self._words = (PAD, BOS, END, *words)
        self._numbers = {word: number for number, word in enumerate(self._words)}
        self._separator, self.size = separator, len(self._words)

    def encode(self, text: str) -> list[int]:
        """See ``Tokenizer.encode``."""
        words = text.split() if self._separator else list(text)
        try:
            return [self.bos, *map(self._numbers.__getitem__, words)]
        except KeyError as error:
            known = " ".join(self._words[2:])
            raise ValueError(f"unknown word {error}; known are {known}") from None

    def decode(self, tokens: Sequence[int]) -> str:
        """See ``Tokenizer.decode``; special tokens within a text are shown."""
        begin = int(tokens[:1] == [self.bos])
        return self._separator.join(self._words[token] for token in tokens[begin:])


class PretrainedTokenizer(Tokenizer):
    """A tokenizer of Hugging Face's transformers, read from a folder."""

    def __init__(self, folder: str) -> None:
        """Read ``folder``; raise ``ConfigError`` if it cannot be used. Nothing is downloaded."""
        self._inner = _load(folder)
        self.size, end = len(self._inner), self._inner.eos_token_id
        if end is None:
            raise ConfigError("env.tokenizer", folder, "has no token for the end (eos_token)")
        self.end = int(end)
        self.pad = self.end if self._inner.pad_token_id is None else int(self._inner.pad_token_id)

    def encode(self, text: str) -> list[int]:
        """See ``Tokenizer.encode``; the first token is of the text if there is none to begin."""
        bos = self._inner.bos_token_id
        begin = [] if bos is None else [int(bos)]
        tokens = begin + self._inner.encode(text, add_special_tokens=False)
        if not tokens:
            raise ValueError("an empty text, and the tokenizer has no token for the beginning")
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """See ``Tokenizer.decode``; special tokens are left out."""
        return str(self._inner.decode(list(tokens), skip_special_tokens=True))


@functools.cache
def _load(folder: str) -> Any:  # noqa: ANN401 - transformers is optional
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("env.tokenizer", folder, "needs pip install 'ppo_lab[text]'")
    if not Path(folder).is_dir():
        allowed = "there is no such folder; save one with tokenizer.save_pretrained(FOLDER)"
        raise ConfigError("env.tokenizer", folder, allowed)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever its file formats raise
        told = " ".join(str(error).split())
        raise ConfigError("env.tokenizer", folder, f"cannot be read: {told}") from error
