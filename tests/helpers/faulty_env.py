"""An environment that does one thing wrong, in a step or reset of its choice."""

from __future__ import annotations

import ctypes
import itertools
import os
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Panic(BaseException):
    """What bindings of other languages raise."""


def raise_error(error):
    raise error


def swallow_exceptions():
    """Try to connect for ever, as clients of simulators do."""
    while True:
        try:
            time.sleep(60)
        except Exception:
            continue


def deadlock():
    """Wait in compiled code for a lock that this thread holds; signals do not end it."""
    lock = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)


GOOD = (np.zeros(2, np.float32), 0.0, False, False, {})
STEPS = {
    "none": lambda: None,
    "four values": lambda: GOOD[1:],
    "shape that broadcasts": lambda: (np.zeros(1, np.float32), *GOOD[1:]),
    "too many numbers": lambda: (np.zeros(3), *GOOD[1:]),
    "ragged": lambda: ([[1.0], [1.0, 2.0]], *GOOD[1:]),
    "text": lambda: (np.array(["a", "b"]), *GOOD[1:]),
    "no observation": lambda: (None, *GOOD[1:]),
    "nan observation": lambda: (np.array([0.0, np.nan]), *GOOD[1:]),
    "infinite observation": lambda: (np.array([-np.inf, 0.0]), *GOOD[1:]),
    "nan at the end": lambda: (np.array([0.0, np.nan]), 0.0, True, False, {}),
    "no reward": lambda: (GOOD[0], None, *GOOD[2:]),
    "two rewards": lambda: (GOOD[0], np.zeros(2), *GOOD[2:]),
    "nan reward": lambda: (GOOD[0], float("nan"), *GOOD[2:]),
    "done is None": lambda: (*GOOD[:2], None, False, {}),
    "done is a word": lambda: (*GOOD[:2], "no", False, {}),
    "done is nan": lambda: (*GOOD[:2], False, float("nan"), {}),
    "error": lambda: raise_error(ConnectionResetError("simulator\nhung up")),
    "exit": lambda: raise_error(SystemExit(3)),
    "panic": lambda: raise_error(Panic("index out of bounds")),
    "sleep": lambda: time.sleep(60),
    "spin": lambda: [None for _ in itertools.count() if False],
    "swallow": swallow_exceptions,
    "deadlock": deadlock,
    "death": lambda: os._exit(3),
    "one reward": lambda: (GOOD[0], np.array([[2.5]]), *GOOD[2:]),
    "loose": lambda: ([0, 1], np.int64(2), 0, np.bool_(False), {None: 1}),
    "out of bounds": lambda: (np.array([0.0, 12.5]), *GOOD[1:]),
}
RESETS = {
    "old reset": lambda: np.zeros(2, np.float32),
    "two numbers": lambda: (0.0, 1.0),
    "nan reset": lambda: (np.full(2, np.nan), {}),
    "error in reset": lambda: raise_error(RuntimeError("no level left")),
    "sleep in reset": lambda: time.sleep(60),
}


class Faulty(gymnasium.Env):
    """The fourth step (of five) or the second reset of environment ``culprit`` is wrong."""

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own form)
    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Discrete(2)
    num_built = 0

    def __init__(self, fault: str = "", culprit: int = 1, num_envs: int = 3) -> None:
        self._number = Faulty.num_built % num_envs
        Faulty.num_built += 1
        self._fault = fault if self._number == culprit else ""
        self._num_steps = self._num_resets = 0
        if self._fault == "no constructor":
            raise OSError("[Errno 98] Address already in use")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._num_resets += 1
        is_wrong = self._fault in RESETS and self._num_resets == 2
        return RESETS[self._fault]() if is_wrong else (GOOD[0].copy(), {})

    def step(self, action):
        self._num_steps += 1
        if self._fault in STEPS and self._num_steps == 4:
            return STEPS[self._fault]()
        return (*GOOD[:2], self._num_steps % 5 == 0, False, {})

    def close(self):
        if self._fault == "error in close":
            raise OSError("no such process")
        if self._fault == "sleep in close":
            time.sleep(60)


gymnasium.register("Faulty-v0", Faulty)
