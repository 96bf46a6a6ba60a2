"""What is written as JSON is strictly valid, and comes back."""

import json
import math
from enum import Enum
from pathlib import Path

import numpy as np
import torch

from ppo_lab.utils.json_files import from_jsonable, to_jsonable, write_json


class Colour(Enum):
    red = "rouge"


def test_values_without_a_json_form_get_one():
    value = {
        1: (Colour.red, np.float32(0.5), np.int64(3), np.bool_(True), None),
        "tensor": torch.tensor([1.0, math.inf]),
        "path": Path("a/b"),
    }
    expected = {"1": ["rouge", 0.5, 3, True, None], "tensor": [1.0, "Infinity"], "path": "a/b"}
    assert to_jsonable(value) == expected


def test_both_spellings_of_infinity_are_read_and_one_is_written(tmp_path):
    old = {"low": "-inf", "high": "inf", "rest": ["-Infinity", "Infinity", "info"]}
    numbers = {"low": -math.inf, "high": math.inf, "rest": [-math.inf, math.inf, "info"]}
    assert from_jsonable(old) == numbers
    write_json(tmp_path / "a.json", numbers)
    written = json.loads((tmp_path / "a.json").read_text())
    expected = ["-Infinity", "Infinity", "info"]
    assert written == {"low": "-Infinity", "high": "Infinity", "rest": expected}
