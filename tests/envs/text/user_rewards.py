"""Rewards as users write them, good and bad."""

import math
import time

import numpy as np

not_callable = 3


def length(texts):
    return [len(text) / 10 for text in texts]


def as_array(texts):
    return np.array([len(text) for text in texts])


def raising(texts):
    raise KeyError("no such model")


def nothing(texts):
    return None


def words(texts):
    return ["good"] * len(texts)


def short(texts):
    return [1.0] * (len(texts) - 1)


def nan(texts):
    return [math.nan] * len(texts)


def slow(texts):
    time.sleep(60)


def fails_later(texts):
    """Accept the three prompts that are probed at the start, and no more."""
    if len(texts) > 3:
        raise ValueError("too many texts")
    return [0.0] * len(texts)


def nan_for_friendly(texts):
    return [math.nan if "friendly" in text else 0.0 for text in texts]
