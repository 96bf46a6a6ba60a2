"""Functions of tensors, compiled ahead of time and cached on disk.

A function is traced once with example tensors (its Python does not run again), compiled by
TorchInductor into a shared library, and called through it without Python between its operations.
The library is kept in a cache folder under a key of everything that went into it, so only the first
run of a kind pays for the compiler; loading takes some 20 ms.

A program is specific to the shapes, strides and types of its tensors. Arguments that it changes in
place must not overlap.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import ppo_lab
from ppo_lab.compiler import cpp_build
from ppo_lab.compiler.compiled import (
    CompiledFunction,
    CompilerError,
    CompileSpec,
    FlatFunction,
    flatten,
    layout_of,
    structure_of,
)
from ppo_lab.compiler.decompositions import DECOMPOSITIONS
from ppo_lab.utils import torch_private
from ppo_lab.utils.tracing import tracing

__all__ = ["ProgramCache", "trace", "write_cpp"]

_LOG = logging.getLogger(__name__)
_LOCK_WAIT_S = 0.2
_RUN_IN_THIS_THREAD, _NUM_RUNNERS, _DEVICE_OF_THE_PACKAGE = True, 1, -1


class _Library:
    """A compiled package with its state bound."""

    def __init__(self, path: Path, spec: CompileSpec) -> None:
        # What torch._inductor.aoti_load_package does, without its 3 s of imports.
        loader = torch_private.AOTIModelPackageLoader(
            str(path), "model", _RUN_IN_THIS_THREAD, _NUM_RUNNERS, _DEVICE_OF_THE_PACKAGE
        )
        self._run: FlatFunction = loader.boxed_run
        self._state = list(spec.state)
        self._layouts: list[Any] | None = [layout_of(tensor) for tensor in flatten(spec.args)]

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """Run the library, which does not check its arguments: the first call is checked here."""
        if self._layouts is not None:
            for position, (tensor, layout) in enumerate(zip(tensors, self._layouts, strict=True)):
                if layout_of(tensor) != layout:
                    raise ValueError(f"argument {position} is {layout_of(tensor)}, not {layout}")
            self._layouts = None
        return self._run([*self._state, *tensors])


class ProgramCache:
    """Compiled programs on disk, under a key of everything that went into them."""

    def __init__(self, key: Mapping[str, Any], folder: Path | None = None) -> None:
        """Cache programs of configs with this ``key`` in ``folder``, default the user's cache."""
        self._folder = folder or default_folder()
        facts = {
            "key": key,
            "source": _source_digest(),
            "torch": torch.__version__,
            "cpu": cpp_build.cpu_digest(),
            "threads": torch.get_num_threads(),
        }
        self._facts = json.dumps(facts, sort_keys=True, default=str)

    def path(self, spec: CompileSpec) -> Path:
        """Return the path of the program of ``spec``, whether or not it exists."""
        layout = layout_of((tuple(spec.state), spec.args))  # with None for absent args
        text = json.dumps([self._facts, spec.name, layout])
        return self._folder / f"{spec.name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.pt2"

    def is_cached(self, specs: Sequence[CompileSpec]) -> bool:
        """Return whether every program of ``specs`` exists."""
        return all(self.path(spec).exists() for spec in specs)

    def load(self, specs: Sequence[CompileSpec]) -> list[CompiledFunction]:
        """Return the compiled functions of ``specs``, compiling those that are missing.

        Processes that need the same programs share the work: each takes one that is not locked.
        Raises ``CompilerError`` with the first line of the compiler's message if it fails.
        """
        if not self.is_cached(specs):
            _LOG.info("compiling, which takes a minute; later runs of this kind load the result")
        missing = {self.path(spec): spec for spec in specs}
        # The next program is traced here while the C++ compiler works on the last one.
        with ThreadPoolExecutor() as compilers:
            compiled: list[Future[None]] = []
            while missing:
                for path, spec in list(missing.items()):
                    if (lock := _lock(path)) is None:
                        continue
                    del missing[path]
                    with lock:
                        if not path.exists():
                            compiled.append(_begin_build(spec, path, lock, compilers))
                if missing:
                    time.sleep(_LOCK_WAIT_S)
            for program in compiled:
                program.result()
        return [self._load_one(spec) for spec in specs]

    def _load_one(self, spec: CompileSpec) -> CompiledFunction:
        with torch.no_grad():  # an uncompiled call shows how results are nested
            result = structure_of(spec.call(*spec.copies()))
        return CompiledFunction(_Library(self.path(spec), spec), result)


def default_folder() -> Path:
    """Return the folder of compiled programs: ``PPO_LAB_CACHE``, else the user's cache."""
    if folder := os.environ.get("PPO_LAB_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppo_lab"


def _lock(path: Path) -> contextlib.ExitStack | None:
    """Lock the program at ``path`` until the stack is closed; None if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as lock:
        file = lock.enter_context(path.with_suffix(".lock").open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        return lock.pop_all()


def _begin_build(
    spec: CompileSpec, path: Path, lock: contextlib.ExitStack, compilers: ThreadPoolExecutor
) -> Future[None]:
    """Trace ``spec``, then compile it in a thread, which holds ``lock`` until it is done."""
    begin_s = time.perf_counter()
    with _as_compiler_error(spec.name):
        files = write_cpp(spec)
    held = lock.pop_all()

    def compile_files() -> None:
        part = path.with_name(f"{path.stem}.{os.getpid()}.pt2")
        with held, _as_compiler_error(spec.name):
            try:
                cpp_build.package(files, part, path.parent)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        _LOG.info("compiled %s in %.0f s", spec.name, time.perf_counter() - begin_s)

    return compilers.submit(compile_files)


@contextlib.contextmanager
def _as_compiler_error(name: str) -> Iterator[None]:
    """Turn any error into a ``CompilerError`` with its first line."""
    try:
        yield
    except Exception as error:  # of many kinds, from the tracer to the C++ compiler
        first_line = str(error).strip().partition("\n")[0]
        message = f"could not compile {name}: {type(error).__name__}: {first_line}"
        raise CompilerError(message) from error


def trace(spec: CompileSpec) -> torch.fx.GraphModule:
    """Return the graph of operations of ``spec``, backward pass included."""
    with torch.no_grad(), tracing():
        traced = torch_private.make_fx(spec.call_flat, decomposition_table=DECOMPOSITIONS)
        return traced(*spec.copies())


def write_cpp(spec: CompileSpec) -> list[str]:
    """Generate the C++ of ``spec`` with Inductor; return the files."""
    # Start no pool of compile workers.
    settings = torch_private.inductor_config.patch(compile_threads=1)
    # Switch off a fusion of loops that fails with a KeyError for stacks of lanes:
    # https://github.com/pytorch/pytorch/issues/188228, not fixed in torch 2.13.
    fusion = patch.object(torch_private.CppScheduling, "_get_outer_loop_fusion_depth", lambda *_: 0)
    with warnings.catch_warnings(), torch.no_grad(), settings, fusion:
        warnings.simplefilter("ignore")  # torch warns about its own internals
        graph = trace(spec)
        for node in graph.graph.nodes:
            node.meta.clear()  # Inductor refuses the fake tensors in it
        files = torch_private.aot_compile(graph, tuple(spec.copies()), options=_options())
    assert isinstance(files, list)  # because of the option ``package``
    return [name for name in files if isinstance(name, str)]


def _options() -> dict[str, Any]:
    """Return our options of Inductor, without those that the installed torch does not have."""
    wanted = {
        "aot_inductor.package": True,
        "aot_inductor.enable_line_tables": False,
        # Skip a trial compilation of 4 s: every compiler for C++20 supports AVX2.
        "cpp.vec_isa_ok": torch.backends.cpu.get_cpu_capability() == "AVX2" or None,
        **cpp_build.OPTIONS,
    }
    known = torch_private.inductor_config.get_config_copy()
    return {key: value for key, value in wanted.items() if key in known}


@cache
def _source_digest() -> str:
    """Return a digest of this package's source, which programs are compiled from."""
    digest = hashlib.sha256()
    root = Path(ppo_lab.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
