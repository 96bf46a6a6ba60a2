"""Private names of torch: all in one module, and all there in the installed version."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

import ppo_lab
from ppo_lab.utils import torch_private

ROOT = Path(ppo_lab.__file__).parent.parent
SOURCES = [
    path
    for folder in ("ppo_lab", "hydra_plugins")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(torch_private.__file__)
]


def is_private(path: str) -> bool:
    """Return whether a dotted path of torch has a private part, or is declared experimental."""
    first, *parts = path.split(".")
    own = [part for part in parts if part.startswith("_") and not part.startswith("__")]
    return first == "torch" and (bool(own) or path.startswith("torch.fx.experimental"))


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` of an attribute of an attribute of a name, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def torch_paths(source: str) -> set[str]:
    """Return the dotted paths that ``source`` imports or names."""
    paths = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            paths |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            paths |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            paths.add(dotted(node))
    return paths


@pytest.mark.parametrize("name", torch_private._ENTRY_POINTS)
def test_every_private_entry_point_exists_in_the_installed_torch(name):
    assert getattr(torch_private, name) is not None


def test_a_missing_entry_point_is_named(monkeypatch):
    gone = {"gone": "torch._inductor.no_such.function"}
    monkeypatch.setattr(torch_private, "_ENTRY_POINTS", gone)
    with pytest.raises(ImportError, match=r"torch .* has no torch\._inductor\.no_such\.function"):
        torch_private.gone  # noqa: B018


@pytest.mark.parametrize(
    "source",
    [
        "import torch._inductor",
        "from torch import _inductor",
        "from torch._inductor import config",
        "from torch.utils._pytree import tree_flatten",
        "from torch.fx.experimental.proxy_tensor import make_fx",
        "import torch\nx = torch._C._aoti.Loader()",
        "import torch\nx = torch.ops.aten._fused_adamw_.tensor_lr",
    ],
)
def test_a_private_name_is_found_however_it_is_used(source):
    assert any(map(is_private, torch_paths(source)))


def test_public_names_are_not_taken_for_private_ones():
    source = "import torch, ppo_lab\nfrom torch import Tensor\ny = (torch.__version__, self._x)"
    assert not any(map(is_private, torch_paths(source)))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_uses_a_private_torch_name(path):
    assert not [name for name in torch_paths(path.read_text()) if is_private(name)]


def test_the_sources_are_those_of_the_package():
    assert len(SOURCES) > 90
    assert find_spec("hydra_plugins") is not None
