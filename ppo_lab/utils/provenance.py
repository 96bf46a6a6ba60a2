"""Provenance of a result besides its config: versions, machine, commit."""

from __future__ import annotations

import contextlib
import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["git_state", "machine", "versions"]

_PACKAGES = ("ppo_lab", "torch", "gymnasium", "hydra-core", "omegaconf", "wandb", "optuna", "numpy")


@functools.cache  # reading the packages' metadata takes 10 ms
def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that a run uses."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


@functools.cache
def machine(device: torch.device) -> dict[str, str]:
    """Return device and platform, without the host's name."""
    found = {"device": str(device), "platform": platform.system() + "-" + platform.machine()}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def git_state() -> dict[str, Any]:
    """Return the checkout's commit and whether files differ from it; {} outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {}
    try:
        commit = _git("-C", str(root), "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("-C", str(root), "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}  # git is not installed, or the repository has no commit


def _git(*arguments: str) -> str:
    command = ("git", *arguments)
    output = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10)
    return output.strip()
