"""docs/python.md runs from top to bottom, and prints what it says where it says it."""

import contextlib
import io
import re
from pathlib import Path

import ppo_lab

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
BLOCK = re.compile(r"```python\n(.*?)```\n(?:```text\n(.*?)```)?", re.DOTALL)


def test_the_page_runs_and_shows_what_it_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) > 7
    for code, shown in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, "docs/python.md", "exec"), names)
        expected, cut, _ = shown.partition("...\n")
        found = printed.getvalue()
        if shown:
            assert (found[: len(expected)] if cut else found) == expected, code
    clipped = names["clipped"]
    assert clipped.index.nlevels == 2
    assert len(clipped) == 2 * 2  # two epsilons, two iterations
    assert (tmp_path / "runs" / "first" / "best" / "checkpoint" / "policy.json").is_file()


def test_the_page_names_every_function_of_the_library():
    table = re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE)
    assert {*table, "__version__"} == set(ppo_lab.__all__)
    assert all(callable(getattr(ppo_lab, name)) for name in table)
