"""A small grammar of English: sentences to learn, a parser, and a reward for friendly words.

    sentence = phrase verb phrase [adverb] "."
    phrase   = determiner [adjective] noun

The reward counts words alone. So a policy that is only after reward drifts into lists of
adjectives, which the parser sees and the reward does not.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence

import numpy as np

from ppo_lab.envs.text.task import TextTask
from ppo_lab.envs.text.tokenizers import END, WordTokenizer

__all__ = ["GrammarTask", "is_grammatical"]

DETERMINERS = ("the", "a", "this", "every")
POSITIVE = ("gentle", "clever", "cheerful", "friendly", "lovely", "patient")
NEGATIVE = ("rude", "lazy", "gloomy", "jealous", "nasty", "selfish")
NEUTRAL = ("tiny", "young", "tall", "striped", "wooden", "silent")
NOUNS = ("beaver", "farmer", "sailor", "pony", "teacher", "robot")
VERBS = ("greets", "watches", "helps", "paints", "carries", "visits")
ADVERBS = ("today", "often", "slowly", "outside")

_ADJECTIVES = (POSITIVE, NEGATIVE, NEUTRAL)
_ADJECTIVE_BOUNDS = (2 / 9, 5 / 9)  # of shares 2/9, 3/9, 4/9: friendly words are the rarest
_PHRASE_ADJECTIVE, _SENTENCE_ADVERB = 0.6, 0.3  # probabilities
_MOST_WORDS = 8  # besides the end
_NUMBERS = 2 * 5 + 3  # drawn for a sentence: two phrases, verb, adverb


def is_grammatical(text: str) -> bool:
    """Return whether a text is one whole sentence.

    Example:
        >>> is_grammatical("the tiny pony greets a robot ."), is_grammatical("the pony greets .")
        (True, False)
    """
    words = text.split(" ")
    after = _phrase(words, 0)
    if after is None or not set(words[after : after + 1]) & set(VERBS):
        return False
    after = _phrase(words, after + 1)
    if after is None:
        return False
    return words[after:] == [END] or (words[after + 1 :] == [END] and words[after] in ADVERBS)


def _phrase(words: Sequence[str], begin: int) -> int | None:
    """Return where the phrase that begins at ``begin`` ends; None if there is none."""
    found = words[begin : begin + 3]
    if not found or found[0] not in DETERMINERS:
        return None
    has_adjective = len(found) > 1 and any(found[1] in words_ for words_ in _ADJECTIVES)
    noun = 1 + has_adjective
    return begin + noun + 1 if len(found) > noun and found[noun] in NOUNS else None


class GrammarTask(TextTask):
    """Complete a sentence that begins with a determiner, with friendly words in it."""

    longest = _MOST_WORDS + 2  # with the tokens for beginning and end

    def __init__(self, prompts: Sequence[str] = DETERMINERS) -> None:
        """Complete ``prompts``; raise ``ValueError`` for a word that is not in the vocabulary."""
        adjectives = (word for words in _ADJECTIVES for word in words)
        self.tokenizer = WordTokenizer((*DETERMINERS, *adjectives, *NOUNS, *VERBS, *ADVERBS))
        self.prompts = [self.tokenizer.encode(prompt) for prompt in prompts]

    def rewards(self, texts: Sequence[str]) -> list[float]:
        """Return half the number of positive words, less half that of negative ones."""
        return [
            sum((word in POSITIVE) - (word in NEGATIVE) for word in text.split(" ")) / 2
            for text in texts
        ]

    def quality(self, texts: Sequence[str]) -> dict[str, float]:
        """See ``TextTask.quality``; adds the share of grammatical texts."""
        share = sum(map(is_grammatical, texts)) / len(texts)
        return {"grammatical_frac": share} | super().quality(texts)

    def corpus(self, seed: int, number: int) -> list[str]:
        """Return random sentences; of their adjectives 2/9 are positive and 3/9 negative."""
        numbers = np.random.default_rng(seed).random((number, _NUMBERS))
        return [_sentence(row.tolist()) for row in numbers]


def _sentence(numbers: list[float]) -> str:
    """Return a sentence from numbers in [0, 1)."""
    draws = iter(numbers)

    def pick(words: Sequence[str]) -> str:
        return words[int(next(draws) * len(words))]

    def phrase() -> list[str]:
        determiner, noun = pick(DETERMINERS), pick(NOUNS)
        adjective = pick(_ADJECTIVES[bisect(_ADJECTIVE_BOUNDS, next(draws))])
        has_adjective = next(draws) < _PHRASE_ADJECTIVE
        return [determiner, adjective, noun] if has_adjective else [determiner, noun]

    words = [*phrase(), pick(VERBS), *phrase()]
    adverb = pick(ADVERBS)
    has_adverb = next(draws) < _SENTENCE_ADVERB
    return " ".join([*words, adverb, END] if has_adverb else [*words, END])
