"""Functions of tensors, compiled ahead of time and cached on disk.

A function is traced once with example tensors (its Python does not run again), compiled by
TorchInductor into a shared library, and called through it without Python between its operations.
The library is kept in a cache folder under keys of everything that went into it, so only the first
run of a kind pays for the compiler; loading takes some 20 ms.

A program is specific to the shapes, strides and types of its tensors. Arguments that it changes in
place must not overlap.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

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
from ppo_lab.compiler.program_store import ProgramStore, default_folder, sha256
from ppo_lab.utils import torch_private
from ppo_lab.utils.tracing import tracing

__all__ = ["ProgramCache", "trace", "write_cpp"]

_LOG = logging.getLogger(__name__)
_LOCK_WAIT_S = 0.2
_PACKAGE = Path(__file__).parents[1]
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
    """Compiled programs on disk, found by two keys.

    The first key is quick: config, layouts, and all source of this package. Where it finds nothing,
    the function is traced, and its graph is the second key: a change of the source that changes no
    graph costs no compilation.
    """

    def __init__(self, key: Mapping[str, Any], folder: Path | None = None) -> None:
        """Cache programs of configs with this ``key`` in ``folder``, default the user's cache."""
        self._folder, self._key = folder, key

    @cached_property
    def _store(self) -> ProgramStore:
        return ProgramStore(self._folder or default_folder())

    @cached_property
    def _machine(self) -> list[Any]:
        """What every program depends on beside its function."""
        return [torch.__version__, cpp_build.cpu_digest(), torch.get_num_threads()]

    def key(self, spec: CompileSpec) -> str:
        """Return the quick key of the program of ``spec``."""
        layout = layout_of((tuple(spec.state), spec.args))  # with None for absent args
        facts = [self._machine, self._key, _source_digest(_PACKAGE), layout]
        return _key(spec.name, json.dumps(facts, sort_keys=True, default=str))

    def _graph_key(self, spec: CompileSpec, graph: torch.fx.GraphModule) -> str:
        """Return the key of everything that the compiler is given."""
        nodes = [node.target for node in graph.graph.nodes if node.op == "get_attr"]
        constants = [(layout_of(c), c.tolist()) for c in (getattr(graph, name) for name in nodes)]
        layout = layout_of((tuple(spec.state), tuple(flatten(spec.args))))
        compiler = _source_digest(Path(__file__).parent)
        facts = [self._machine, compiler, layout, graph.code, constants]
        return _key(spec.name, json.dumps(facts))

    def load(self, specs: Sequence[CompileSpec]) -> list[CompiledFunction]:
        """Return the compiled functions of ``specs``, compiling those that are missing.

        Processes that need the same programs share the work: each takes one that is not locked.
        Raises ``CompilerError`` with the first line of the reason if anything fails.
        """
        with _as_compiler_error("a program"):
            keys = {self.key(spec): spec for spec in specs}
            found = {key: path for key in keys if (path := self._store.find(key))}
            if len(found) < len(keys):
                found |= self._build({k: spec for k, spec in keys.items() if k not in found})
            return [_load(spec, found[key]) for key, spec in keys.items()]

    def _build(self, missing: dict[str, CompileSpec]) -> dict[str, Path]:
        """Compile programs, or wait for other processes that do; return their paths by key."""
        _LOG.info("compiling, which takes a minute; later runs of this kind load the result")
        store, found = self._store, dict[str, Path]()
        # The next program is traced here while the C++ compiler works on the last one.
        with ThreadPoolExecutor() as compilers:
            compiled: dict[str, Future[Path]] = {}
            while missing:
                for key, spec in list(missing.items()):
                    if (lock := store.lock(key)) is None:
                        continue
                    del missing[key]
                    with lock:
                        if path := store.find(key):
                            found[key] = path
                        else:
                            compiled[key] = self._begin_build(spec, key, lock, compilers)
                if missing:
                    time.sleep(_LOCK_WAIT_S)
            found |= {key: program.result() for key, program in compiled.items()}
        store.prune()
        return found

    def _begin_build(
        self, spec: CompileSpec, key: str, lock: contextlib.ExitStack, compilers: ThreadPoolExecutor
    ) -> Future[Path]:
        """Trace ``spec``, then compile it in a thread, which holds ``lock`` until it is done."""
        begin_s, store = time.perf_counter(), self._store
        with contextlib.ExitStack() as held, _as_compiler_error(spec.name):
            folder = tempfile.TemporaryDirectory(prefix="building-", dir=store.folder)
            work = Path(held.enter_context(folder))
            graph = trace(spec)
            graph_key = self._graph_key(spec, graph)
            if (same := store.find(graph_key)) is None:
                files = write_cpp(spec, graph, work)
            held.push(lock.pop_all())
            held = held.pop_all()

        def compile_files() -> Path:
            with held, _as_compiler_error(spec.name):
                if same is not None:
                    store.link(key, same)
                    return same
                cpp_build.package(files, work / "built.pt2", store.folder)
                program = store.save(graph_key, work / "built.pt2")
                store.link(key, program)
            _LOG.info("compiled %s in %.0f s", spec.name, time.perf_counter() - begin_s)
            return program

        return compilers.submit(compile_files)


def _key(name: str, facts: str) -> str:
    return f"{name}-{sha256(facts.encode())[:24]}"


def _load(spec: CompileSpec, path: Path) -> CompiledFunction:
    with torch.no_grad():  # an uncompiled call shows how results are nested
        result = structure_of(spec.call(*spec.copies()))
    return CompiledFunction(_Library(path, spec), result)


@contextlib.contextmanager
def _as_compiler_error(name: str) -> Iterator[None]:
    """Turn any error into a ``CompilerError`` with its first line."""
    try:
        yield
    except CompilerError:
        raise
    except Exception as error:  # of many kinds, from the tracer to the C++ compiler
        first_line = str(error).strip().partition("\n")[0]
        message = f"could not compile {name}: {type(error).__name__}: {first_line}"
        raise CompilerError(message) from error


def trace(spec: CompileSpec) -> torch.fx.GraphModule:
    """Return the graph of operations of ``spec``, backward pass included."""
    with warnings.catch_warnings(), torch.no_grad(), tracing():
        warnings.simplefilter("ignore")  # torch warns about its own internals
        traced = torch_private.make_fx(spec.call_flat, decomposition_table=DECOMPOSITIONS)
        return traced(*spec.copies())


def write_cpp(spec: CompileSpec, graph: torch.fx.GraphModule, folder: Path) -> list[str]:
    """Generate the C++ of the ``graph`` of ``spec`` in ``folder`` with Inductor; return the files.

    In a folder of its own: Inductor's keeps a damaged file for ever, and any user may create it.
    """
    for node in graph.graph.nodes:
        node.meta.clear()  # Inductor refuses the fake tensors in it
    # Start no pool of compile workers.
    settings = torch_private.inductor_config.patch(compile_threads=1)
    # Switch off a fusion of loops that fails with a KeyError for stacks of lanes:
    # https://github.com/pytorch/pytorch/issues/188228, not fixed in torch 2.13.
    fusion = patch.object(torch_private.CppScheduling, "_get_outer_loop_fusion_depth", lambda *_: 0)
    options = _options() | {"aot_inductor.output_path": str(folder)}
    with warnings.catch_warnings(), torch.no_grad(), settings, fusion:
        warnings.simplefilter("ignore")  # torch warns about its own internals
        files = torch_private.aot_compile(graph, tuple(spec.copies()), options=options)
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
def _source_digest(folder: Path) -> str:
    """Return a digest of the source in ``folder``."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
