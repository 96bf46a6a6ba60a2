"""What Inductor writes for a program comes apart where it should."""

import sys
from pathlib import Path

import pytest
import torch

from ppo_lab.compiler import cpp_build as library
from ppo_lab.compiler.compiled import CompileSpec
from ppo_lab.compiler.program_cache import trace, write_cpp


def test_what_inductor_writes_comes_apart_into_interface_calls_and_kernels(tmp_path):
    spec = CompileSpec("tanh", lambda _, x, y: (x @ y).tanh(), (torch.ones(4, 4),) * 2)
    (written,) = (
        Path(name) for name in write_cpp(spec, trace(spec), tmp_path) if name.endswith(".cpp")
    )
    text = written.read_text()
    interface, calls, kernels = library._split(text)
    assert "AOTInductorModelContainerCreate(" in interface
    assert "AOTInductorModel::run_impl(" in calls
    assert 'extern "C"  void  cpp_fused' in kernels
    assert len(interface) + len(calls) + len(kernels) == len(text)


def test_what_is_not_where_it_is_expected_stays_with_the_calls():
    assert library._split("int main() {}") == ("", "int main() {}", "")


def test_a_failing_compiler_is_quoted():
    with pytest.raises(RuntimeError, match=r"python.*: .*No such file"):
        library._run([sys.executable, "no_such_file"])
