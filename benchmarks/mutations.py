"""The changes that make a mutant, and those that no test can notice."""

from __future__ import annotations

import ast
import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Mutant", "file_of", "mutants_of"]

_ROOT = Path(__file__).resolve().parent.parent
_COMPARISONS: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt], ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is], ast.In: [ast.NotIn], ast.NotIn: [ast.In],
}  # fmt: skip
_OPERATIONS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}  # fmt: skip
_NAMES = {"min": "max", "minimum": "maximum", "amin": "amax", "any": "all", "exp": "log"}
_NAMES |= {value: key for key, value in _NAMES.items()}
_LONGEST = 160  # characters of code that are shown
_SAID_ONLY = ("_LOG", "log", "ConfigError", "ValueError", "assert")


class Equivalent(NamedTuple):
    """A change of one line that no test on a CPU can notice, and why."""

    module: str
    line: str
    """A part of the line's text."""
    change: str
    reason: str


_ALL_TRIALS = "trials = [t for t in study.get_trials(deepcopy=False)"
_NEWTON = "y = 0.5 + 1.0 / value"
_LIMIT = 'match.groups() if match else ("", "", "nan")'
EQUIVALENT = [
    Equivalent("objective", "if c.sign > 0 and", "`c.sign > 0` -> `c.sign >= 0`",
               "a sign is 1 or -1"),
    Equivalent("objective", _LIMIT, "`''` -> `'x'`", "a limit of nan is refused whatever its key"),
    Equivalent("objective", _LIMIT, "`'nan'` -> `'nanx'`", "no number either"),
    Equivalent("pruning", _ALL_TRIALS, "`study.get_trials(deepcopy=False)` -> `study.get_trials()`",
               "slower, the same"),
    Equivalent("pruning", _ALL_TRIALS, "`False` -> `True`", "slower, the same"),
    Equivalent("pruning", "dofs = np.array(",
               "`np.array([spread.num_seeds - 1 for spread in pool], dtype=float)` -> "
               "`np.array([spread.num_seeds - 1 for spread in pool])`",
               "whole numbers divide alike"),
    Equivalent("pruning", "if excess <= 0", "`excess <= 0` -> `excess < 0`",
               "variances give exactly 0 with probability 0"),
    Equivalent("pruning", _NEWTON, "`0.5` -> `1.0`",
               "Newton's method starts elsewhere and ends in the same place"),
    Equivalent("pruning", _NEWTON, "`1.0 / value` -> `1.0 * value`", "the same"),
    Equivalent("pruning", _NEWTON, "`1.0` -> `2.0`", "the same"),
    Equivalent("pruning", "for _ in range(50)", "`50` -> `51`", "it ends in fewer than ten steps"),
    Equivalent("pruning", "if abs(step) < 1e-8 * y",
               "`abs(step) < 1e-08 * y` -> `abs(step) <= 1e-08 * y`", "a step too many at most"),
    Equivalent("pruning", "if abs(step) < 1e-8 * y", "`1e-08 * y` -> `1e-08 / y`", "the same"),
    Equivalent("pruning", "if abs(step) < 1e-8 * y", "`1e-08` -> `2e-08`", "the same"),
    Equivalent("adam", "torch.div(bucket.exp_avg, root, out=root)",
               "`torch.div(bucket.exp_avg, root, out=root)` -> `torch.div(bucket.exp_avg, root)`",
               "more memory, the same numbers"),
    Equivalent("running_stats", "moments = cls(",
               "`torch.empty(shape, dtype=torch.float64, device=device)` -> "
               "`torch.empty(shape, dtype=torch.float64)`", "the same on a CPU"),
    Equivalent("running_stats", "samples = torch.zeros(",
               "`torch.zeros(num_lanes, num_envs, num_features, dtype=torch.float64, "
               "device=device)` -> `torch.zeros(num_lanes, num_envs, num_features, "
               "dtype=torch.float64)`", "the same on a CPU"),
    Equivalent("collector", "_MAX_BLOCK_BYTES = 1 << 20", "`1` -> `2`",
               "bytes per write, which only cost time"),
    Equivalent("collector", "self._write()", "`self._write()` dropped",
               "everything is written at the end"),
    Equivalent("collector", "self._stores[0].synchronize()",
               "`self._stores[0].synchronize()` dropped", "nothing to wait for on a CPU"),
]  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str
    line: int
    body: range | None
    """Lines of the outermost function around it; None outside of functions."""
    change: str
    source: str
    """The first line of what is changed."""
    tree: ast.Module = dataclasses.field(repr=False)

    @property
    def reason(self) -> str | None:
        """Why no test can notice it; None if one should."""
        name = self.module.rpartition(".")[2]
        reasons = (
            known.reason for known in EQUIVALENT
            if (known.module, known.change) == (name, self.change) and known.line in self.source
        )  # fmt: skip
        return next(reasons, None)

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.change}"


def mutants_of(module: str) -> Iterator[Mutant]:
    """Yield every mutant of a module of the package."""
    text = Path(file_of(module)).read_text()
    tree, lines = ast.parse(text), text.splitlines()
    for body, parent, field, index, node in _places(tree):
        for change, new in _changes(node):
            _put(parent, field, index, ast.fix_missing_locations(ast.copy_location(new, node)))
            mutated = copy.deepcopy(tree)
            _put(parent, field, index, node)
            yield Mutant(module, node.lineno, body, change, lines[node.lineno - 1], mutated)


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


_Place = tuple[range | None, ast.AST, str, int | None, Any]


def _places(tree: ast.AST, body: range | None = None) -> Iterator[_Place]:
    """Yield what may be changed: lines of the enclosing function, parent, field, index, node."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "bases", "type_comment"):
            continue
        for number, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST) or _is_said_only(node):
                continue
            if isinstance(node, ast.expr | ast.stmt):
                yield body, tree, field, number if isinstance(value, list) else None, node
            inner = body
            if isinstance(node, ast.FunctionDef) and body is None:
                inner = range(node.body[0].lineno, (node.end_lineno or 0) + 1)
            if isinstance(node, ast.arguments):  # defaults are computed at the definition
                inner = None
            yield from _places(node, inner)


def _is_said_only(node: ast.AST) -> bool:
    """Return whether ``node`` only says something: docstrings, messages, lists of names."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Assert | ast.Raise | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Assign | ast.AugAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        return isinstance(target, ast.Name) and target.id == "__all__"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        root = node.value.func
        while isinstance(root, ast.Attribute):
            root = root.value
        return isinstance(root, ast.Name) and root.id in _SAID_ONLY
    return False


def _changes(node: Any) -> Iterator[tuple[str, ast.AST]]:  # noqa: ANN401 - any node
    """Yield the changes of one node: what is changed to what, and the new node."""
    text = ast.unparse(node).partition("\n")[0][:_LONGEST]

    def to(**fields: Any) -> tuple[str, ast.AST]:  # noqa: ANN401
        new = copy.copy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        ast.fix_missing_locations(new)
        return f"`{text}` -> `{ast.unparse(new).partition(chr(10))[0][:_LONGEST]}`", new

    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield from (to(ops=[other()]) for other in _COMPARISONS[type(node.ops[0])])
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _OPERATIONS:
        yield to(op=_OPERATIONS[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield to(op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield f"`{text}` -> `{ast.unparse(node.operand)[:_LONGEST]}`", node.operand
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield to(test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Constant):
        yield from (to(value=value) for value in _other_constants(node.value))
    elif isinstance(node, ast.Call):
        if node.args and not isinstance(node.args[-1], ast.Starred):
            yield to(args=node.args[:-1])
        for i, keyword in enumerate(node.keywords):
            if keyword.arg not in (None, "device"):  # without a GPU there is one device
                yield to(keywords=node.keywords[:i] + node.keywords[i + 1 :])
    elif isinstance(node, ast.Attribute) and node.attr in _NAMES:
        yield to(attr=_NAMES[node.attr])
    elif isinstance(node, ast.Name) and node.id in _NAMES:
        yield to(id=_NAMES[node.id])
    if isinstance(node, ast.AugAssign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield f"`{text}` dropped", ast.Pass()


def _other_constants(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        return [value * 2.0 if value else 1.0]
    # Text with a blank is a message to a person.
    return [f"{value}x"] if isinstance(value, str) and " " not in value else []


def file_of(module: str) -> str:
    """Return the path of a module of the package."""
    return str(_ROOT / (module.replace(".", "/") + ".py"))
