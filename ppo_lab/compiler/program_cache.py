"""Programs: functions of tensors, compiled ahead of time and kept on disk.

A function is traced once with the tensors it will get (its Python runs no more after that),
compiled by TorchInductor into a shared library, and called through it without Python between its
operations. The library is kept in a cache folder under a key of everything that went into it, so
only the first run of a kind pays for the compiler; loading takes some 20 ms.

A program is fixed to the shapes, strides and types of its tensors. Arguments that it changes in
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import ppo_lab
from ppo_lab.compiler import cpp_build
from ppo_lab.compiler.decompositions import DECOMPOSITIONS
from ppo_lab.utils.tracing import tracing

__all__ = [
    "CompilerError",
    "Program",
    "ProgramCache",
    "ProgramSource",
    "Run",
    "copy_of",
    "trace",
    "write_cpp",
]

_LOG = logging.getLogger(__name__)
_LOCK_WAIT_S = 0.2
_RUN_IN_THIS_THREAD, _NUM_RUNNERS, _DEVICE_OF_THE_PACKAGE = True, 1, -1

Run = Callable[[list[Tensor]], list[Tensor]]
"""What a program is to its caller, however it was made."""


class CompilerError(RuntimeError):
    """A program could not be compiled."""


@dataclass(frozen=True)
class ProgramSource:
    """A function with the tensors it is traced with."""

    name: str
    function: Callable[..., Sequence[Tensor]]
    """Takes the tensors one by one; may change them in place."""
    examples: Sequence[Tensor]
    """Of the shapes, strides and types of all later calls; they are not changed."""
    kept: Sequence[Tensor] = ()
    """Those examples that every call passes again, by the same address: what outlives a call."""


class Program:
    """A compiled function; call it with a list of tensors like its examples."""

    def __init__(self, path: Path, examples: Sequence[Tensor]) -> None:
        """Load the package at ``path``."""
        # What torch._inductor.aoti_load_package ends in, without 3 s of imports on the way.
        loader = torch._C._aoti.AOTIModelPackageLoader(
            str(path), "model", _RUN_IN_THIS_THREAD, _NUM_RUNNERS, _DEVICE_OF_THE_PACKAGE
        )
        self._run: Callable[[list[Tensor]], list[Tensor]] = loader.boxed_run
        self._layouts: list[tuple[object, ...]] | None = [_layout(t) for t in examples]

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the function's tensors; the list ``tensors`` is used up.

        The library trusts its caller: the first call is checked against the examples.
        """
        if self._layouts is not None:
            for position, (tensor, layout) in enumerate(zip(tensors, self._layouts, strict=True)):
                if _layout(tensor) != layout:
                    raise ValueError(f"argument {position} is {_layout(tensor)}, not {layout}")
            self._layouts = None
        return self._run(tensors)


class ProgramCache:
    """Compiled programs on disk, under keys of all that went into them."""

    def __init__(self, key: Mapping[str, Any], folder: Path | None = None) -> None:
        """Keep programs of what ``key`` describes in ``folder``, by default the user's cache."""
        self._folder = folder or default_folder()
        facts = {
            "key": key,
            "source": _source_digest(),
            "torch": torch.__version__,
            "cpu": cpp_build.cpu_digest(),
            "threads": torch.get_num_threads(),
        }
        self._facts = json.dumps(facts, sort_keys=True, default=str)

    def path(self, source: ProgramSource) -> Path:
        """Return where the program of ``source`` lies or would lie."""
        layouts = [str(_layout(tensor)) for tensor in source.examples]
        text = json.dumps([self._facts, source.name, layouts])
        return self._folder / f"{source.name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.pt2"

    def is_cached(self, sources: Sequence[ProgramSource]) -> bool:
        """Return whether nothing of ``sources`` is left to compile."""
        return all(self.path(source).exists() for source in sources)

    def load(self, sources: Sequence[ProgramSource]) -> list[Program]:
        """Return the programs of ``sources``, compiling those that are missing.

        Processes that need the same ones share the work: each takes one that nobody is at.

        Raises:
            CompilerError: with the compiler's first line, if there is none that works.
        """
        missing = {self.path(source): source for source in sources}
        # While the C++ compiler is at one program, the next is traced here.
        with ThreadPoolExecutor() as compilers:
            compiled: list[Future[None]] = []
            while missing:
                has_advanced = False
                for path, source in list(missing.items()):
                    if (lock := _lock(path)) is None:
                        continue
                    has_advanced = True
                    del missing[path]
                    with lock:
                        if not path.exists():
                            compiled.append(_begin_build(source, path, lock, compilers))
                if missing and not has_advanced:
                    time.sleep(_LOCK_WAIT_S)
            for program in compiled:
                program.result()
        return [Program(self.path(source), source.examples) for source in sources]


def default_folder() -> Path:
    """Return the folder of compiled programs: ``PPO_LAB_CACHE``, else the user's cache."""
    if folder := os.environ.get("PPO_LAB_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppo_lab"


def _lock(path: Path) -> contextlib.ExitStack | None:
    """Return what holds the lock of the program at ``path`` until it is closed, if it is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as lock:
        file = lock.enter_context(path.with_suffix(".lock").open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        return lock.pop_all()


def _begin_build(
    source: ProgramSource, path: Path, lock: contextlib.ExitStack, compilers: ThreadPoolExecutor
) -> Future[None]:
    """Trace ``source`` and have it compiled; once begun, ``lock`` is held until that has ended."""
    begin_s = time.perf_counter()
    with _told_as_ours(source.name):
        files = write_cpp(source)
    held = lock.pop_all()

    def compile_files() -> None:
        with held, _told_as_ours(source.name):
            _package(files, path)
        _LOG.info("compiled %s in %.0f s", source.name, time.perf_counter() - begin_s)

    return compilers.submit(compile_files)


@contextlib.contextmanager
def _told_as_ours(name: str) -> Iterator[None]:
    """Raise ``CompilerError`` with the first line of whatever goes wrong."""
    try:
        yield
    except Exception as error:  # of many kinds, from the tracer to the C++ compiler
        first_line = str(error).strip().partition("\n")[0]
        raise CompilerError(
            f"could not compile {name}: {type(error).__name__}: {first_line}"
        ) from error


def _package(files: Sequence[str], path: Path) -> None:
    """Compile ``files``; the program at ``path`` appears whole or not at all."""
    part = path.with_name(f"{path.stem}.{os.getpid()}.pt2")
    try:
        cpp_build.package(files, part, path.parent)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def trace(source: ProgramSource) -> torch.fx.GraphModule:
    """Return the operations of ``source``, seen through autograd, modules and Python."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad(), tracing():
        return make_fx(source.function, decomposition_table=DECOMPOSITIONS)(*_copies(source))


def write_cpp(source: ProgramSource) -> list[str]:
    """Have Inductor write ``source`` in C++; return the files."""
    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        _without_helpers(),
        _without_outer_loop_fusion(),
    ):
        warnings.simplefilter("ignore")  # of torch's own making, about its own internals
        graph = trace(source)
        for node in graph.graph.nodes:
            node.meta.clear()  # each has fake tensors of its own, which Inductor refuses
        files = torch._inductor.aot_compile(graph, _copies(source), options=_options())
    assert isinstance(files, list)  # as the option ``package`` says
    return [name for name in files if isinstance(name, str)]


def _copies(source: ProgramSource) -> tuple[Tensor, ...]:
    return tuple(copy_of(tensor) for tensor in source.examples)


def copy_of(tensor: Tensor) -> Tensor:
    """Return a copy with the same strides, holes and all; ``clone`` would close them."""
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor.detach())


def _options() -> dict[str, Any]:
    """Return Inductor's options, those of them that this version of torch has."""
    from torch._inductor import config

    wanted = {
        "aot_inductor.package": True,
        "aot_inductor.enable_line_tables": False,
        # Whether it knows AVX2 need not be asked of a compiler for C++20, which takes 4 s.
        "cpp.vec_isa_ok": torch.backends.cpu.get_cpu_capability() == "AVX2" or None,
        **cpp_build.OPTIONS,
    }
    return {key: value for key, value in wanted.items() if key in config.get_config_copy()}


@contextlib.contextmanager
def _without_helpers() -> Iterator[None]:
    """Start no pool of compiling processes: one program is one call of the C++ compiler."""
    from torch._inductor import config

    with config.patch(compile_threads=1):
        yield


@contextlib.contextmanager
def _without_outer_loop_fusion() -> Iterator[None]:
    """Switch off a fusion of loops on the CPU that fails with a KeyError for stacks of lanes.

    https://github.com/pytorch/pytorch/issues/188228, not yet mended in torch 2.13.
    """
    from torch._inductor.codegen.cpp import CppScheduling

    with patch.object(CppScheduling, "_get_outer_loop_fusion_depth", lambda *_: 0):
        yield


def _layout(tensor: Tensor) -> tuple[object, ...]:
    """Return what a program relies on; along an axis of one, the stride is nothing."""
    strides = [step if size > 1 else 0 for size, step in zip(tensor.shape, tensor.stride())]
    return tuple(tensor.shape), tuple(strides), str(tensor.dtype), tensor.device.type


@cache
def _source_digest() -> str:
    """Return a digest of this package: a program holds its arithmetic, whatever the version."""
    digest = hashlib.sha256()
    root = Path(ppo_lab.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
