"""Output of ``--help``: the keys with default and meaning, parsed from the source of the config.

So it needs neither torch nor Hydra.
"""

from __future__ import annotations

import ast
import functools
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppo_lab.config.other_names import answer
from ppo_lab.utils.errors import ConfigError, did_you_mean
from ppo_lab.utils.paths import CONF_DIR, SWEEPS_DIR

__all__ = ["help_text", "help_topics", "keys"]

_PACKAGE = Path(__file__).resolve().parents[1]
_SOURCES = (  # prefix of the keys, file, class, title; no title: those of the comments in the class
    ("", "config/hyperparameters", "Hyperparameters", ""),
    ("", "config/run", "Config", ""),
    ("", "config/evaluation", "EvaluationConfig", "Evaluation"),
    ("checkpoint", "config/checkpoint", "CheckpointConfig", "Checkpoints"),
    ("env", "envs/config", "EnvConfig", "Environment"),
    ("env", "envs/text/config", "TextConfig", "Texts: env=text and env=arithmetic"),
    ("network", "networks/base", "NetworkConfig", "Network"),
    ("network", "networks/mlp", "MlpConfig", "Network: tiny to huge"),
    ("network", "networks/recurrent", "RecurrentConfig", "Network: lstm and gru"),
    ("network", "networks/transformer", "TransformerConfig", "Network: gpt_tiny to gpt_7b"),
    ("network", "networks/hf", "HfConfig", "Network: hf"),
    ("memory", "memory/base", "MemoryStrategy", "Memory strategy"),
    ("memory", "memory/offloaded_optimizer", "OffloadedOptimizer", "Memory: offloaded_optimizer"),
    ("memory", "memory/parked", "Parked", "Memory: parked"),
    ("baseline", "ppo/baselines", "GroupBaseline", "Baselines of groups"),
    ("baseline", "ppo/baselines", "ReinforcePP", "Baseline: reinforce_pp"),
    ("tracking", "tracking/config", "TrackingConfig", "Tracking"),
    ("study", "config/study", "StudyConfig", "Study"),
    ("study.confirm", "config/study", "ConfirmConfig", "Study: confirmation"),
    ("", "config/study", "CommandConfig", "Report"),
)
_ENUMS = (
    *("config/choices", "config/study", "devices/placement", "envs/config", "envs/text/config"),
    *("networks/base", "networks/mlp", "networks/recurrent", "networks/transformer"),
    *("networks/hf", "ppo/losses", "ppo/row_weights", "ppo/update", "tracking/config"),
)
_GROUPS = ("env", "network", "memory", "baseline", "tracking", "study/sampler", "study/pruner")
_TYPES = {"bool": "true or false", "int": "whole number", "float": "number"}
_BOUNDS = {"above": ">", "at_least": ">=", "at_most": "<="}
_USAGE = """\
python -m ppo_lab KEY=VALUE ...   train; several values and -m make a grid
python -m ppo_lab sweep=NAME      run a sweep or study; again: go on with it
python -m ppo_lab resume=FOLDER   go on with a run or grid; last: the newest
python -m ppo_lab fork=FOLDER     begin a new run from the state of another
python -m ppo_lab --help KEY      one key, or a group such as memory
python -m ppo_lab ... --cfg job   show the values that a command would use
python -m ppo_lab --hydra-help    Hydra's own flags"""


@dataclass(frozen=True)
class Key:
    """One key of the config."""

    name: str
    default: str
    """Empty if it must be given."""
    allowed: str
    """Its type, or the values of its enum."""
    meaning: str
    section: str

    def lines(self, width: int) -> Iterator[str]:
        """Yield key, default and type, then the meaning."""
        head = f"  {self.name}={self.default}"
        yield f"{head}  ({self.allowed})" if self.allowed else head
        yield from textwrap.wrap(
            self.meaning, width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6
        )


def help_topics(words: Sequence[str]) -> list[str] | None:
    """Return what a command asks help for: names without values; None if it is no such command."""
    flags = [word for word in words if word in ("--help", "-h")]
    topics = [word for word in words if word not in flags]
    is_other = any(word.startswith("-") or "=" in word for word in topics)
    return None if not flags or is_other else topics


def help_text(topics: Sequence[str], width: int | None = None) -> str:
    """Return the help of the ``topics``, of everything if there are none.

    Raises:
        ConfigError: there is no such key or group.
    """
    width = min(width or shutil.get_terminal_size().columns, 100)
    if topics:
        return "\n".join(line for topic in topics for line in _topic(topic, width))
    lines = [_USAGE, "", "Groups (--help GROUP says when to choose which)"]
    for group in (*_GROUPS, "sweep"):
        lines += textwrap.wrap(
            f"  {group}= {' '.join(_options(group))}", width, subsequent_indent=" " * 6
        )
    return "\n".join([*lines, *_listed(keys(), width)])


def _topic(topic: str, width: int) -> Iterator[str]:
    ours = [key for key in keys() if key.name == topic] or [
        key for key in keys() if key.name.startswith(f"{topic}.")
    ]
    options = _options(topic) if topic in (*_GROUPS, "sweep") else {}
    if not ours and not options:
        named = {*(key.name for key in keys()), *_GROUPS, "sweep"}
        allowed = answer(topic) or f"there is no such key{did_you_mean(topic, named)}"
        raise ConfigError("--help", topic, allowed)
    for name, about in options.items():
        yield f"  {topic}={name}"
        yield from textwrap.wrap(
            about, width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    yield from _listed(ours, width)


def _listed(chosen: Sequence[Key], width: int) -> Iterator[str]:
    section = None
    for key in chosen:
        if key.section != section:
            section = key.section
            yield f"\n{section}"
        yield from key.lines(width)


def _options(group: str) -> dict[str, str]:
    """Return the options of a config group, with the comment at the head of their files."""
    folder = SWEEPS_DIR if group == "sweep" else CONF_DIR / group
    files = {path.relative_to(folder).with_suffix(""): path for path in folder.rglob("*.yaml")}
    shown = sorted(name for name in files if (group, str(name)) != ("sweep", "wandb"))  # W&B's own
    return {str(name): _comment(files[name]) for name in shown}


def _comment(path: Path) -> str:
    lines = path.read_text().splitlines()
    lines = [line for line in lines if not line.startswith(("# @package", "# python -m ppo_lab "))]
    head = lines[: next((n for n, line in enumerate(lines) if line[:1] != "#"), len(lines))]
    return " ".join(line.removeprefix("#").strip() for line in head)


@functools.cache
def keys() -> tuple[Key, ...]:
    """Return every key, in the order of the source."""
    return tuple(key for source in _SOURCES for key in _keys_of(*source))


def _keys_of(prefix: str, file: str, class_name: str, title: str) -> Iterator[Key]:
    tree, lines = _parsed(file)
    (found,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name)
    nested = {name.rpartition(".")[2] for name, *_ in _SOURCES}
    section, end = title or "Run", found.lineno
    for node, below in zip(found.body, [*found.body[1:], None]):
        if not isinstance(node, ast.AnnAssign) or "ClassVar" in ast.unparse(node.annotation):
            continue
        for line in lines[end : node.lineno - 1]:
            if not title and (heading := re.fullmatch(r"    # (.*)", line)):
                section = heading[1]
        name, end = ast.unparse(node.target), node.end_lineno or node.lineno
        if name in nested:
            continue
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        meaning = str(below.value.value) if is_text else ""  # type: ignore[union-attr]
        yield Key(
            f"{prefix}.{name}" if prefix else name,
            "" if node.value is None else _value(node.value),
            _allowed(ast.unparse(node.annotation), _ranges().get(name, "")),
            " ".join(meaning.replace("``", "").split()),
            section,
        )


@functools.cache
def _parsed(file: str) -> tuple[ast.Module, list[str]]:
    text = (_PACKAGE / f"{file}.py").read_text()
    return ast.parse(text), text.splitlines()


@functools.cache
def _enums() -> dict[str, str]:
    """Return the values of each enum that a key may have."""
    return {
        node.name: ", ".join(
            str(ast.literal_eval(each.value)) for each in node.body if isinstance(each, ast.Assign)
        )
        for file in _ENUMS
        for node in _parsed(file)[0].body
        if isinstance(node, ast.ClassDef) and "Enum" in str([ast.unparse(b) for b in node.bases])
    }


@functools.cache
def _ranges() -> dict[str, str]:
    """Return the range of each key that ``check_number`` or ``check_whole`` checks."""
    found: dict[str, str] = {}
    for file in dict.fromkeys(file for _, file, *_ in _SOURCES):
        tree = _parsed(file)[0]
        tables = {ast.unparse(n.targets[0]): n for n in tree.body if isinstance(n, ast.Assign)}
        for node in ast.walk(tree):
            names = _looped(node, tables) if isinstance(node, ast.For) else None
            calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
            for call in calls if names is not None else calls[:1]:
                kind, key = ast.unparse(call.func), call.args[0] if call.args else None
                if kind not in ("check_number", "check_whole") or key is None:
                    continue
                is_fixed = isinstance(key, ast.Constant)
                for name in [str(key.value)] if is_fixed else names or ():  # type: ignore[attr-defined]
                    found.setdefault(name.rpartition(".")[2], _range(kind, call))
    return found


def _looped(loop: ast.For, tables: dict[str, ast.Assign]) -> list[str]:
    """Return the keys over which ``loop`` runs: of a tuple, of tuples, or of a table."""
    source = ast.unparse(loop.iter).removesuffix(".items()")
    values = tables[source].value if source in tables else loop.iter
    each = values.keys if isinstance(values, ast.Dict) else getattr(values, "elts", [])
    firsts = [item.elts[0] if isinstance(item, ast.Tuple) else item for item in each]
    return [str(first.value) for first in firsts if isinstance(first, ast.Constant)]


def _range(kind: str, call: ast.Call) -> str:
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if kind == "check_whole":
        given.setdefault("at_least", "1")
    bounds = [f"{sign} {given[name]}" for name, sign in _BOUNDS.items() if name in given]
    bounds = [text.removesuffix(".0") for text in bounds if text[-1].isdigit()]
    off = [word for word in ("off", "auto") if given.get(word) == "True"]
    words = {"off": "or none", "auto": "or auto"}
    what = "number" if kind == "check_number" else "whole number"
    return " ".join([what, *" and ".join(bounds).split(), *(words[word] for word in off)])


def _allowed(annotation: str, bounds: str) -> str:
    kind = annotation.removesuffix(" | None")
    return _enums().get(kind) or bounds or _TYPES.get(kind, "")


def _value(node: ast.expr) -> str:
    """Return a default as it is written on the command line."""
    if isinstance(node, ast.Call):  # field(default_factory=...)
        factory = node.keywords[0].value
        if isinstance(factory, ast.Lambda):
            return ast.unparse(factory.body)
        return {"list": "[]", "dict": "{}"}.get(ast.unparse(factory), "")
    if isinstance(node, ast.Constant) and not isinstance(node.value, int | float):
        return "none" if node.value is None else str(node.value)
    text = ast.unparse(node)
    if text == "MISSING":
        return ""
    return text.rpartition(".")[2] if isinstance(node, ast.Attribute) else text.lower()
