"""Builds libraries from Inductor's C++, with the shared runtime compiled once per machine.

Most of a program's C++ is the same in every program: headers, the C interface of a library, and the
base class of all models, whose regular expression takes longer to compile than all kernels. That
part is compiled once, into precompiled headers and one object file. Flags are Inductor's own.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ppo_lab.compiler.program_store import private_folder, read_own, sha256
from ppo_lab.utils import torch_private
from ppo_lab.utils.json_files import atomic_write

__all__ = ["OPTIONS", "cpu_digest", "package"]

_LOG = logging.getLogger(__name__)

OPTIONS: dict[str, Any] = {
    "aot_inductor.package_cpp_only": True,
    "aot_inductor.precompile_headers": False,  # we have our own
}
"""Options with which Inductor only generates C++."""

_CALLS_HEADER = """\
#include <torch/csrc/inductor/aoti_include/cpu.h>
#include <torch/csrc/inductor/aoti_runtime/model_container.h>
namespace torch::aot_inductor {
extern template class AOTInductorModelBase<AOTInductorModel>;  // defined in runtime.o
}
"""
_KERNELS_HEADER = "#include <torch/csrc/inductor/cpp_prefix.h>\n"
_INTERFACE = "codegen/aoti_runtime/interface.cpp"
_RUNTIME_END = """
namespace torch::aot_inductor {
template class AOTInductorModelBase<AOTInductorModel>;
}
"""
_DIGESTS = "sha256.json"  # in the runtime's folder: the digest of each of its files
_WHOLE: set[Path] = set()  # runtimes that were built or verified by this process
_CALLS_LEVEL = "-O1"  # as in Inductor; with -O0 each call of a program takes 15 to 20 us longer


def package(files: Sequence[str], path: Path, folder: Path) -> None:
    """Compile Inductor's ``files`` to a package at ``path``; the runtime is kept in ``folder``."""
    written = Path(_only(files, ".cpp"))
    interface, calls, kernels = _split(written.read_text())
    flags = _read_flags(files, "_compile_flags.json")
    compiler = _compiler(flags)
    shared = _shared(compiler, interface, folder)
    with tempfile.TemporaryDirectory(prefix="building-", dir=folder) as name:
        work = Path(name)
        # Without kernels of their own, calls contain them and need full optimization.
        options = [_CALLS_LEVEL, "-include", str(shared / "calls.h")] if kernels else []
        header = ["-include", str(shared / "kernels.h")]
        _run_all(
            [
                [*compiler, *options, *_object(work / "calls.cpp", calls)],
                [*compiler, *header, *_object(work / "kernels.cpp", kernels)],
            ]
        )
        library = work / f"{written.stem}.so"  # names in a package must match
        objects = [*map(str, work.glob("*.o")), *(name for name in files if name.endswith(".o"))]
        linker = _read_flags(files, "_linker_flags.json")
        objects.append(str(shared / "runtime.o"))
        objects += [f"-L{folder}" for folder in linker["libraries_dirs"]]
        objects += [f"-l{name}" for name in linker["libraries"]]
        _run([*_compiler(linker), *objects, "-o", str(library)])
        facts = (n for n in files if n.endswith(".json") and not n.endswith("_flags.json"))
        torch_private.package_aoti(str(path), [str(library), *facts])


def _split(text: str) -> tuple[str, str, str]:
    """Return the interface, which is the same in every program, the calls, and the kernels.

    A part that is not found stays in the calls.
    """
    interface = (Path(torch_private.inductor.__file__).parent / _INTERFACE).read_text()
    if interface not in text:
        interface = ""
    calls, header, kernels = text.replace(interface, "").partition(_KERNELS_HEADER)
    return interface, calls, header + kernels


def _shared(compiler: Sequence[str], interface: str, folder: Path) -> Path:
    """Return the folder of the runtime and the precompiled headers.

    They are built if they are missing, or if a file is not as it was built.
    """
    texts = [_CALLS_HEADER, _KERNELS_HEADER, _RUNTIME_END, _CALLS_LEVEL, interface]
    facts = [compiler, texts, torch.__version__, _run([compiler[0], "--version"]), cpu_digest()]
    shared = folder / f"runtime-{sha256(json.dumps(facts).encode())[:24]}"
    with (folder / f"{shared.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not _is_whole(shared):
            _LOG.info("compiling the runtime of all programs, once per machine")
            shutil.rmtree(shared, ignore_errors=True)
            _build_shared(compiler, interface, private_folder(shared))
            _LOG.info("compiled the runtime of all programs")
    os.utime(shared)
    return shared


def _build_shared(compiler: Sequence[str], interface: str, shared: Path) -> None:
    for name, text in {"calls.h": _CALLS_HEADER, "kernels.h": _KERNELS_HEADER}.items():
        (shared / name).write_text(text)
    calls = [_CALLS_LEVEL, "-x", "c++-header", str(shared / "calls.h")]
    kernels = ["-x", "c++-header", str(shared / "kernels.h")]
    _run_all([*compiler, *own, "-o", f"{own[-1]}.gch"] for own in (calls, kernels))
    include = [_CALLS_LEVEL, "-include", str(shared / "calls.h")]
    text = f"{_CALLS_HEADER}{interface}{_RUNTIME_END}"
    _run([*compiler, *include, *_object(shared / "runtime.cpp", text)])
    for path in shared.iterdir():
        path.chmod(0o600)
    digests = {path.name: sha256(path.read_bytes()) for path in shared.iterdir()}
    atomic_write(shared / _DIGESTS, json.dumps(digests).encode())  # last: all is built
    (shared / _DIGESTS).chmod(0o600)
    _WHOLE.add(shared)


def _is_whole(shared: Path) -> bool:
    """Return whether all files are there as they were built; read once per process."""
    try:
        if shared not in _WHOLE:
            digests = json.loads(read_own(shared / _DIGESTS))
            if any(sha256(read_own(shared / name)) != digests[name] for name in digests):
                return False
            _WHOLE.add(shared)
        return (shared / _DIGESTS).exists()
    except (OSError, ValueError):
        return False


def _object(path: Path, text: str) -> list[str]:
    """Write C++ to ``path``; return the compiler's arguments for an object file beside it."""
    path.write_text(text)
    return ["-c", str(path), "-o", str(path.with_suffix(".o"))]


def _only(files: Iterable[str], ending: str) -> str:
    (name,) = (name for name in files if name.endswith(ending))
    return name


def _read_flags(files: Iterable[str], ending: str) -> Any:  # noqa: ANN401 - a JSON object
    return json.loads(Path(_only(files, ending)).read_text())


def _compiler(flags: dict[str, Any]) -> list[str]:
    """Return the compiler's command with all of Inductor's flags but the libraries."""
    return [
        flags["compiler"],
        *(f"-D{name.strip()}" for name in flags["definitions"]),
        *(f"-{flag}" for flag in flags["cflags"] + flags["ldflags"]),
        *(f"-I{folder}" for folder in flags["include_dirs"]),
        *shlex.split(" ".join(flags["passthrough_args"])),
    ]


def _run_all(commands: Iterable[Sequence[str]]) -> None:
    """Run ``commands`` in parallel."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(_run, commands))


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        reason = done.stdout.strip() or f"ended with status {done.returncode}"
        raise RuntimeError(f"{command[0]}: {reason}")
    return done.stdout


@cache
def cpu_digest() -> str:
    """Return a digest of the CPU's instruction set, as several machines may share a cache."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    text = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {flags}"
    return sha256(text.encode())
