"""``python -m benchmarks.mutants [NAME ...]``: do the tests notice one changed operation?

A mutant is the package with one small change: another comparison, another operation, another
constant, a negated condition, a dropped argument, a dropped statement. It *survives* if every quick
test that runs the changed function passes. The tests are collected once; each mutant is a forked
child in which the changed functions get new code, so it costs its tests, not an import of torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib
import os
import random
import signal
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage
import pytest
import torch

from benchmarks.mutations import Mutant, file_of, mutants_of
from benchmarks.result_page import publish, table

__all__ = ["TARGETS", "main"]

_ROOT = Path(__file__).resolve().parent.parent
_TIMEOUT_S = 300
_SLOWEST_S = 1.5  # tests that take longer are left out
_LOOP = (
    "tests/ppo", "tests/training/test_reference.py", "tests/training/test_recorder.py",
    "tests/training/test_lanes.py", "tests/training/test_edges.py",
    "tests/memory/test_strategies.py", "tests/memory/test_moved_state.py",
)  # fmt: skip
_STUDY_TESTS = ("objective", "pruning", "pruning_numbers")
_SINGLE_KEYS = "tests/training/test_reference.py::test_a_key_changed_alone"
TARGETS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "ppo": (
        ["losses", "advantages", "diagnostics", "update", "adam", "rollout", "collector",
         "after_update"],
        _LOOP,
    ),
    "training": (
        ["lane_values", "recorder", "scores", "trainer"],
        [*_LOOP, "tests/training/test_scores.py", "tests/training/test_episodes.py",
         "tests/training/test_refill.py"],
    ),
    "envs": (
        ["running_stats"],
        ["tests/envs/test_running_stats.py", "tests/envs/test_running_stats_edges.py"],
    ),
    "networks": (["distributions"], ["tests/networks", "tests/training/test_reference.py"]),
    "studies.definition": (
        ["objective", "pruning"],
        [f"tests/studies/definition/test_{name}.py" for name in _STUDY_TESTS],
    ),
}  # fmt: skip
"""Rooms: their modules, and the tests that may notice."""


# Putting a mutant in place, in a process of its own


def functions_of(module: str) -> list[types.FunctionType]:
    """Return every function that the imported module has defined so far."""
    names = vars(importlib.import_module(module))
    every = gc.get_objects()
    return [f for f in every if type(f) is types.FunctionType and f.__globals__ is names]


def apply(mutant: Mutant, functions: Sequence[types.FunctionType]) -> None:
    """Give the imported module's functions, classes and constants the mutant's code and values."""
    module = importlib.import_module(mutant.module)
    path = str(module.__file__)
    code = compile(mutant.tree, path, "exec")
    codes = {(c.co_qualname, c.co_firstlineno): c for c in _codes(code)}
    for function in functions:
        new = codes.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
        if new is not None and new.co_freevars == function.__code__.co_freevars:
            function.__code__ = new
    if mutant.body is not None:
        return
    scratch = types.ModuleType(mutant.module)
    scratch.__dict__.update({"__file__": path, "__package__": mutant.module.rpartition(".")[0]})
    sys.modules[mutant.module] = scratch  # dataclasses look their module up
    try:
        exec(code, vars(scratch))
    finally:
        sys.modules[mutant.module] = module
    _copy_values(scratch, module)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


_PLAIN = (bool, int, float, str, tuple, dict, list, set, frozenset, type(None))


def _copy_values(new: Any, old: Any, users: Sequence[Any] = ()) -> None:  # noqa: ANN401
    """Copy constants and defaults from one module or class to another."""
    users = users or [m for name, m in sys.modules.items() if name.startswith(("ppo_lab", "tests"))]
    for name, value in list(vars(new).items()):
        before = vars(old).get(name)
        if isinstance(value, types.FunctionType) and isinstance(before, types.FunctionType):
            before.__defaults__, before.__kwdefaults__ = value.__defaults__, value.__kwdefaults__
        elif isinstance(value, type) and value.__module__ == getattr(new, "__name__", ""):
            if isinstance(before, type) and value is not before:
                _copy_values(value, before, users)
        elif type(value) in _PLAIN and not name.startswith("__") and value != before:
            setattr(old, name, value)
            if isinstance(old, types.ModuleType):
                for user in users:
                    if vars(user).get(name) is before and before is not None:
                        setattr(user, name, value)


# Running the tests


@dataclass
class Runner:
    """pytest's plugin: after collection it runs every mutant's tests in forked children."""

    modules: Sequence[str]
    survivors: list[Mutant] = dataclasses.field(default_factory=list)
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    limit: int | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all tests once, to learn which functions each calls; then all mutants."""
        lines, seconds = self._watch(session)
        quick = [i for i, second in enumerate(seconds) if second < _SLOWEST_S]
        mutants = [mutant for module in self.modules for mutant in mutants_of(module)]
        print(f"{len(mutants)} mutants; {len(quick)} of {len(seconds)} tests are quick, "
              f"{sum(seconds[i] for i in quick):.0f} s", flush=True)  # fmt: skip
        functions = {module: functions_of(module) for module in self.modules}
        kills: Counter[int] = Counter()
        if self.limit is not None and self.limit < len(mutants):
            mutants = random.Random(1).sample(mutants, self.limit)
        for number, mutant in enumerate(mutants, 1):
            # First what has noticed others: a second of tests decides nearly every mutant.
            quick.sort(key=lambda i: (-kills[i], seconds[i]))
            callers = [i for i in quick if _runs(lines[i], mutant)]
            fate, killer = self._fate(session, mutant, functions[mutant.module], callers)
            self.counts["equivalent" if fate == "survived" and mutant.reason else fate] += 1
            kills.update(killer)
            if fate == "survived":
                self.survivors.append(mutant)
            if fate == "survived" or number % 50 == 0:
                print(f"{number}/{len(mutants)} {fate}: {mutant}", flush=True)
        return True

    def _watch(self, session: pytest.Session) -> tuple[list[dict[str, set[int]]], list[float]]:
        """Run every test once; return which lines of the modules it runs, and its seconds."""
        files = [file_of(module) for module in self.modules]
        seconds: list[float] = []
        watch = coverage.Coverage(data_file=None, config_file=False, include=files)
        watch.start()
        for i, item in enumerate(session.items):
            later = session.items[i + 1] if i + 1 < len(session.items) else None
            watch.switch_context(str(i))
            begin_s = time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=later)
            seconds.append(time.process_time() - begin_s)
        watch.stop()
        assert not session.testsfailed, "the tests must pass without a mutant"
        lines: list[dict[str, set[int]]] = [{} for _ in session.items]
        for file in files:
            for line, contexts in watch.get_data().contexts_by_lineno(file).items():
                for context in filter(None, contexts):
                    lines[int(context)].setdefault(file, set()).add(line)
        return lines, seconds

    def _fate(
        self,
        session: pytest.Session,
        mutant: Mutant,
        functions: Sequence[types.FunctionType],
        callers: Sequence[int],
    ) -> tuple[str, list[int]]:
        """Run tests on ``mutant`` in a child; return what became of it, and the test to thank."""
        sys.stdout.flush()
        receiver, sender = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(receiver)
            session.config.pluginmanager.unregister(name="terminalreporter")
            os._exit(_child(session, mutant, functions, callers, sender))
        os.close(sender)
        with os.fdopen(receiver) as answers:
            killer = [int(line) for line in answers]
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        fate = {0: "survived", -signal.SIGALRM: "killed by the clock"}.get(status, "killed")
        return fate, killer


def _child(
    session: pytest.Session,
    mutant: Mutant,
    functions: Sequence[types.FunctionType],
    callers: Sequence[int],
    sender: int,
) -> int:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_TIMEOUT_S)
    try:
        apply(mutant, functions)
        for i in callers:
            item = session.items[i]
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if session.testsfailed:
                os.write(sender, f"{i}\n".encode())
                return 1
    except BaseException:  # whatever breaks, it was noticed
        return 1
    return 0


def _runs(lines: dict[str, set[int]], mutant: Mutant) -> bool:
    """Return whether a test that runs ``lines`` runs the function that is changed."""
    if mutant.body is None:
        return file_of(mutant.module) in lines
    return not lines.get(file_of(mutant.module), set()).isdisjoint(mutant.body)


_WHAT = (
    "A mutant is the package with one operation changed. It survives if no quick test that runs the"
    " changed function fails; an equivalent one cannot be noticed on a CPU, for the reason given."
    " The argument `device` is left alone: only tests/gpu could notice."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutants of the named rooms; print the survivors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="rooms or modules of TARGETS; default all")
    parser.add_argument("--limit", type=int, help="only so many of each room, drawn at random")
    parser.add_argument("--write", action="store_true", help="save a page for each room")
    options = parser.parse_args(arguments)
    header = ["room", "mutants", "noticed", "equivalent", "survived", "share"]
    for room, (modules, tests) in TARGETS.items():
        chosen = [
            f"ppo_lab.{room}.{m}" for m in modules
            if not options.names or room in options.names or m in options.names
        ]  # fmt: skip
        if not chosen:
            continue
        runner = Runner(chosen, limit=options.limit)
        torch.set_num_threads(1)
        words = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow"]
        pytest.main([*words, "--deselect", _SINGLE_KEYS, *tests], [runner])
        assert runner.counts, "the tests could not be collected, or one of them failed"
        total, alive = runner.counts.total(), runner.counts["survived"]
        same, share = runner.counts["equivalent"], alive / max(1, total)
        row = [room, total, total - alive - same, same, alive, f"{share:.1%}"]
        told = [f"- {m}" + (f": {m.reason}" if m.reason else "") for m in runner.survivors]
        parts = [_WHAT, table(header, [row]), "\n".join(told) or "None survived."]
        publish(f"mutants_{room}", f"Mutants of {room}", parts, write=options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
