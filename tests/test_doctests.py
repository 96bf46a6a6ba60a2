"""Every example in a docstring runs, and shows what it says."""

import doctest
import importlib

import pytest

from tests.rooms import MODULES

WITH_EXAMPLES = [
    name.removesuffix(".__init__") for name, path in MODULES.items() if ">>>" in path.read_text()
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted
    assert not failed
