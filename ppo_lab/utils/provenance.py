"""Provenance of a result besides its config: versions, machine, commit."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["git_state", "machine", "versions"]

_PACKAGES = ("ppo_lab", "torch", "gymnasium", "hydra-core", "omegaconf", "wandb", "optuna", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that a run uses."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


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
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}  # git is not installed, or the repository has no commit


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
