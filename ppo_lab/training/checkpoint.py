"""Checkpoints of a run: its lane's state in safetensors and JSON, with a manifest of digests.

A checkpoint is a folder ``checkpoints/<iteration>`` of the run. It is written under another name,
flushed to the disk, and renamed, so that it is there completely or not at all. The manifest holds
the SHA-256 of both files and of itself: a bit changed anywhere is noticed. Nothing is executed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppo_lab.config.run import Config
from ppo_lab.utils.crash_points import crash_point
from ppo_lab.utils.json_files import from_jsonable, to_jsonable
from ppo_lab.utils.provenance import machine, versions

__all__ = [
    "Checkpoint", "LaneState", "describe_run", "load_checkpoint", "remove_checkpoints",
    "save_checkpoint",
]  # fmt: skip

_LOG = logging.getLogger(__name__)

_FORMAT = 1
_TENSORS, _NUMBERS, _MANIFEST = "state.safetensors", "state.json", "manifest.json"
_LARGEST = {_TENSORS: 1 << 40, _NUMBERS: 1 << 26, _MANIFEST: 1 << 20}
"""Bytes that are read at most: a terabyte of tensors, 64 MiB of numbers."""


@dataclass(frozen=True)
class LaneState:
    """All that a lane's next iterations depend on, besides its config."""

    tensors: dict[str, Tensor]
    """On the host."""
    numbers: dict[str, Any]
    """JSON values, such as the lane's own ``iteration``."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified."""

    state: LaneState
    manifest: dict[str, Any]
    folder: Path
    skipped: tuple[str, ...] = ()
    """Newer ones that were passed over, each with the reason."""

    def warn(self) -> None:
        """Log what was passed over."""
        for reason in self.skipped:
            _LOG.warning("%s: passed over %s", self.folder.parent, reason)


def describe_run(config: Config, state: LaneState, **more: object) -> dict[str, Any]:
    """Return a manifest: where the run is, and what its numbers depend on.

    Of the config only a digest, which no password can be read from. ``more`` is added.
    """
    as_json = json.dumps(config.as_dict(), sort_keys=True)
    iteration = state.numbers["iteration"]
    return {
        "iteration": iteration,
        "env_steps": state.numbers.get("env_steps", iteration * config.num_rows),
        "config_sha256": hashlib.sha256(as_json.encode()).hexdigest(),
        "versions": versions(),
        "machine": machine(config.torch_device),
        "is_compiled": state.numbers["is_compiled"],
        "env_mode": state.numbers["env_mode"],
        **more,
    }


def save_checkpoint(run_folder: Path, state: LaneState, manifest: Mapping[str, Any]) -> Path:
    """Write a checkpoint of a run, keep it and the one before it, and return its folder.

    Only one process may write to ``run_folder``.
    """
    every = run_folder / "checkpoints"
    every.mkdir(parents=True, exist_ok=True)
    iteration = state.numbers["iteration"]
    folder, temporary = every / str(iteration), every / f".{iteration}.{secrets.token_hex(8)}"
    temporary.mkdir()
    try:
        save_file(state.tensors, temporary / _TENSORS)
        crash_point("checkpoint_half_written")
        numbers = json.dumps(to_jsonable(state.numbers), allow_nan=False)
        (temporary / _NUMBERS).write_bytes(numbers.encode())
        files = {name: _describe_file(temporary / name) for name in (_TENSORS, _NUMBERS)}
        content = {"format": _FORMAT, **to_jsonable(manifest), "files": files}
        (temporary / _MANIFEST).write_bytes(_sealed(content))
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        if folder.exists():  # of an earlier attempt at this iteration
            folder.rename(every / f".{iteration}.{secrets.token_hex(8)}")
        crash_point("checkpoint_before_rename")
        temporary.rename(folder)
        crash_point("checkpoint_after_rename")
        _flush(every)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    earlier = [number for number in _iterations(every) if number < iteration]
    remove_checkpoints(run_folder, keep={iteration, *earlier[:1]})
    return folder


def load_checkpoint(run_folder: Path, *, at_most: int | None = None) -> Checkpoint | None:
    """Return the newest checkpoint of a run that can be verified; None if there is none.

    Checkpoints of iterations later than ``at_most`` are left out.
    """
    every, skipped = run_folder / "checkpoints", []
    for iteration in _iterations(every):
        if at_most is not None and iteration > at_most:
            continue
        folder = every / str(iteration)
        try:
            state, manifest = _read(folder)
        except (OSError, ValueError, SafetensorError, RecursionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            skipped.append(f"checkpoint {iteration}: {reason}")
        else:
            return Checkpoint(state, manifest, folder, tuple(skipped))
    for reason in skipped:  # else whoever goes on from the checkpoint says it, once
        _LOG.warning("%s: %s", every, reason)
    return None


def remove_checkpoints(run_folder: Path, *, keep: Iterable[int] = ()) -> None:
    """Remove what was never finished, and all checkpoints but those of iterations to ``keep``."""
    kept = set(map(str, keep))
    for path in (run_folder / "checkpoints").glob("*"):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _iterations(every: Path) -> list[int]:
    """Return the iterations of the checkpoints in a folder, the newest first."""
    names = (path.name for path in every.glob("*"))
    return sorted((int(n) for n in names if n.isascii() and n.isdecimal()), reverse=True)


def _sealed(content: dict[str, Any]) -> bytes:
    """Return a manifest's bytes, which end with the digest of the content before it."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=2).encode()


def _read(folder: Path) -> tuple[LaneState, dict[str, Any]]:
    """Return a verified state and its manifest; raise ``ValueError`` saying what is wrong."""
    for name in _LARGEST:
        _check_kind(folder / name)
    sealed = (folder / _MANIFEST).read_bytes()
    content: Any = json.loads(sealed)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{_MANIFEST} is not of format {_FORMAT}, which this version reads")
    content.pop("sha256", None)
    if _sealed(content) != sealed:
        raise ValueError(f"{_MANIFEST} has changed since it was written")
    written = content.get("files")
    for name in (_TENSORS, _NUMBERS):
        if not isinstance(written, dict) or written.get(name) != _describe_file(folder / name):
            raise ValueError(f"{name} has changed since it was written")
    numbers = from_jsonable(json.loads((folder / _NUMBERS).read_bytes()))
    if not isinstance(numbers, dict) or not isinstance(numbers.get("iteration"), int):
        raise ValueError(f"{_NUMBERS} holds no state of a run")
    return LaneState(load_file(folder / _TENSORS), numbers), from_jsonable(content)


def _check_kind(path: Path) -> None:
    """Raise ``ValueError`` for what is no regular file, or too large to be read."""
    found = path.lstat()  # a link could lead anywhere, and a pipe never ends
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path.name} is not a regular file")
    if found.st_size > _LARGEST[path.name]:
        raise ValueError(f"{path.name} has {found.st_size} bytes, more than a checkpoint may have")


def _describe_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _flush(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
