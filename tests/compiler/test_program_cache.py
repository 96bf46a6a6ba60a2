"""The program cache: nothing damaged or foreign is loaded, nothing is compiled twice, it shrinks.

The C++ compiler is replaced by one that writes a line.
"""

import os
import time

import pytest
import torch

from ppo_lab.compiler import cpp_build, program_cache, program_store
from ppo_lab.compiler.compiled import CompilerError, CompileSpec
from ppo_lab.compiler.program_cache import ProgramCache
from ppo_lab.compiler.program_store import ProgramStore

KEY = "double-" + 24 * "0"


@pytest.fixture
def store(tmp_path):
    return ProgramStore(tmp_path / "cache")


@pytest.fixture
def program(store):
    """The path of a program that is stored under ``KEY``."""
    built = store.folder / "building-1"
    built.write_bytes(b"a program")
    return store.save(KEY, built)


def test_a_program_is_named_by_its_content_and_found_by_its_key(store, program):
    assert program.name == f"double-{program_store.sha256(b'a program')}.pt2"
    assert store.find(KEY) == program
    assert store.find("double-" + 24 * "1") is None
    store.link("double-" + 24 * "1", program)
    assert store.find("double-" + 24 * "1") == program
    assert program.stat().st_mode & 0o777 == 0o600
    assert program.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", [b"", b"a progra", b"a prograM", b"a program "])
def test_a_damaged_program_is_not_found(store, program, content):
    program.write_bytes(content)
    assert store.find(KEY) is None


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"\0", b"../../other.pt2", b"."])
def test_a_damaged_key_finds_nothing(store, program, content):
    (store.folder / f"{KEY}.key").write_bytes(content)
    assert store.find(KEY) is None


@pytest.mark.parametrize("mode", [0o620, 0o602])
@pytest.mark.parametrize("is_program", [True, False])
def test_what_others_could_have_written_is_not_found(store, program, is_program, mode):
    path = program if is_program else store.folder / f"{KEY}.key"
    path.chmod(mode)
    assert store.find(KEY) is None


def test_what_belongs_to_another_user_is_not_used(store, program, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: program.stat().st_uid + 1)
    assert store.find(KEY) is None
    with pytest.raises(CompilerError, match="belongs to another user; name your own in PPO_LAB_"):
        ProgramStore(store.folder)


def test_a_folder_that_others_can_write_to_is_closed_to_them(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    assert ProgramStore(tmp_path / "cache").folder.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_is_only_read_serves_what_it_has(store, program, monkeypatch):
    def refuse(*args):
        raise PermissionError

    monkeypatch.setattr(os, "utime", refuse)
    assert store.find(KEY) == program


def test_the_cache_keeps_what_was_used_lately_and_fits_and_nothing_of_other_people(
    store, program, monkeypatch
):
    now, names = time.time(), [f"steps-{n:024}.pt2" for n in range(3)]
    for age, name in enumerate(names):
        (store.folder / name).write_bytes(bytes(100))
        os.utime(store.folder / name, (now - age, now - age - 10))
    runtime = store.folder / ("runtime-" + 24 * "0")
    runtime.mkdir()
    (runtime / "runtime.o").write_bytes(bytes(100))
    (store.folder / "thesis.tex").touch()
    old = [runtime, store.folder / "thesis.tex", program, store.folder / f"{KEY}.key"]
    for path in old:
        os.utime(path, (now, now - 61 * 86_400))
    store.find(KEY)  # so that it was used just now
    monkeypatch.setattr(program_store, "_MAX_BYTES", 350)
    store.prune()
    left = {path.name for path in store.folder.iterdir()}
    # 9 bytes of the program, 71 of its key's file, and 200 of two others.
    assert left == {"thesis.tex", program.name, f"{KEY}.key", names[0], names[1]}


class Library:
    """A program that was loaded, with what its file held."""

    def __init__(self, path, spec):
        self._spec, self.content = spec, path.read_bytes()

    def __call__(self, tensors):
        return self._spec.call_flat(*tensors)


@pytest.fixture
def compiled(monkeypatch):
    """The names of the programs that were compiled, in a list."""
    names = []

    def package(files, path, folder):
        names.append(files[0])
        path.write_text("a program")

    monkeypatch.setattr(program_cache, "write_cpp", lambda spec, graph, folder: [spec.name])
    monkeypatch.setattr(program_cache, "_Library", Library)
    monkeypatch.setattr(cpp_build, "package", package)
    return names


def times(factor):
    def function(state, x):
        return x * factor

    return CompileSpec("times", function, (torch.ones(2),))


def test_a_damaged_program_is_compiled_again_and_loads(compiled, tmp_path):
    for damaged in (b"a progr", b"a programme", None):
        (function,) = ProgramCache({}, tmp_path).load([times(3.0)])
        assert function(torch.ones(2)).tolist() == [3.0, 3.0]
        (path,) = tmp_path.glob("*.pt2")
        assert path.read_bytes() == b"a program"
        if damaged is not None:
            path.write_bytes(damaged)
    assert compiled == ["times"] * 3


def test_only_what_changes_the_graph_is_compiled_again(compiled, tmp_path, monkeypatch):
    def load(key, factor):
        ProgramCache(key, tmp_path).load([times(factor)])

    load({}, 3.0)
    load({"a key that changes nothing here": 1}, 3.0)
    digest = program_cache._source_digest
    other = {program_cache._PACKAGE: "another source of the package"}
    monkeypatch.setattr(program_cache, "_source_digest", lambda p: other.get(p) or digest(p))
    load({}, 3.0)
    assert compiled == ["times"]
    load({"factor": 4}, 4.0)
    assert compiled == ["times"] * 2
    monkeypatch.setattr(torch, "__version__", "2.99")
    load({}, 3.0)
    assert compiled == ["times"] * 3


def test_constants_of_a_graph_are_part_of_its_key(compiled, tmp_path):
    for number in (1.0, 1.0, 2.0):
        held = torch.tensor([number, 0.0])
        spec = CompileSpec("plus", lambda state, x, held=held: x + held, (torch.ones(2),))
        ProgramCache({"number": number}, tmp_path).load([spec])
    assert compiled == ["plus"] * 2


def test_whatever_goes_wrong_is_a_compiler_error_of_one_line(compiled, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(CompilerError, match=r"^could not compile a program: NotADirectoryError: "):
        ProgramCache({}, tmp_path / "file" / "cache").load([times(2.0)])

    def no_home():
        raise RuntimeError("Could not determine home directory.\nsecond line")

    monkeypatch.setattr(program_cache, "default_folder", no_home)
    with pytest.raises(CompilerError, match=r"a program: RuntimeError: Could not .* directory.$"):
        ProgramCache({}).load([times(2.0)])

    def crash(files, path, folder):
        path.write_bytes(b"half a prog")
        cpp_build._run(["sh", "-c", "kill -9 $$"])

    monkeypatch.setattr(cpp_build, "package", crash)
    with pytest.raises(CompilerError, match=r"times: RuntimeError: sh: ended with status -9$"):
        ProgramCache({}, tmp_path).load([times(2.0)])
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".pt2", ".key")]


@pytest.fixture
def commands(monkeypatch):
    """The C++ compiler's commands; each of them writes its name to the file that it should make."""
    found = []

    def run(command):
        found.append(command)
        if "-o" in command:
            (cpp_build.Path(command[command.index("-o") + 1])).write_text(command[0])
        return "version 1"

    monkeypatch.setattr(cpp_build, "_run", run)
    monkeypatch.setattr(cpp_build, "_WHOLE", set())
    return found


def test_the_shared_runtime_is_built_once_and_again_if_a_file_of_it_is_damaged(
    commands, tmp_path, monkeypatch
):
    def build():
        commands.clear()
        monkeypatch.setattr(cpp_build, "_WHOLE", set())  # as in another process
        shared = cpp_build._shared(["c++"], "interface", tmp_path)
        return shared, len(commands) > 1  # more than the question for its version

    shared, was_built = build()
    assert was_built
    assert build() == (shared, False)
    for name in ("runtime.o", "kernels.h.gch", "sha256.json"):
        (shared / name).write_bytes(b"")
        assert build() == (shared, True)
        assert (shared / "runtime.o").read_text() == "c++"
    (shared / "runtime.o").chmod(0o666)
    assert build() == (shared, True)
