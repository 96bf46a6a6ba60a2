"""Private entry points of torch. No other module of the package uses a private torch name.

They may change in any minor release, so ``pyproject.toml`` admits only the releases that were
tested. An entry point is imported when it is first used: some of them load the compiler.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # types of the names in _ENTRY_POINTS that are subclassed or caught
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        FakeTensor,
        FakeTensorMode,
    )
    from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DataDependentOutputException", "FakeTensor", "FakeTensorMode", "TorchDispatchMode"]

_ENTRY_POINTS = {
    "AOTIModelPackageLoader": "torch._C._aoti.AOTIModelPackageLoader",
    "CppScheduling": "torch._inductor.codegen.cpp.CppScheduling",
    "DataDependentOutputException": "torch._subclasses.fake_tensor.DataDependentOutputException",
    "FakeTensor": "torch._subclasses.fake_tensor.FakeTensor",
    "FakeTensorMode": "torch._subclasses.fake_tensor.FakeTensorMode",
    "TorchDispatchMode": "torch.utils._python_dispatch.TorchDispatchMode",
    "aot_compile": "torch._inductor.aot_compile",
    "current_graph_task_id": "torch._C._current_graph_task_id",
    "fused_adamw": "torch.ops.aten._fused_adamw_.tensor_lr",
    "inductor": "torch._inductor",
    "inductor_config": "torch._inductor.config",
    "make_fx": "torch.fx.experimental.proxy_tensor.make_fx",
    "outer_loop_fusion_depth": (  # replaced while a program is compiled
        "torch._inductor.codegen.cpp.CppScheduling._get_outer_loop_fusion_depth"
    ),
    "package_aoti": "torch._inductor.package.package.package_aoti",
}
"""The name in this package, and where torch has it."""


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a class, a function or a module
    if name not in _ENTRY_POINTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    path = _ENTRY_POINTS[name]
    try:
        value = globals()[name] = resolve_name(path)  # found without this function from now on
    except (ImportError, AttributeError):
        version = import_module("torch").__version__
        raise ImportError(f"torch {version} has no {path}") from None
    return value
