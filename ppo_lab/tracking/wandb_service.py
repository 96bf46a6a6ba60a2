"""wandb's service process, its folders and files, as all sinks of this process see them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import glob
import json
import logging
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from ppo_lab.tracking.config import MODES_OF_ENV

__all__ = ["PROCESS", "close_service", "has_key", "has_rows", "last_step", "restart_service"]
__all__ += ["run_folders", "set_up", "upload_error", "waits_for_sync"]

_LOG = logging.getLogger(__name__)

_INSPECT_TIMEOUT_S = 60.0
_EMPTY_LOG_BYTES = 7  # the header of a .wandb file


@dataclass
class _Process:
    """What all sinks of this process know about the server and the service process."""

    is_online_broken: bool = False  # no further run tries the server
    is_upload_broken: bool = False  # no further finish waits for it
    is_id_taken: bool = False  # a run has the id of WANDB_RUN_ID
    service_number: int = 0  # how many service processes were closed
    live: set[str] = field(default_factory=set)  # ids of unfinished runs


PROCESS = _Process()


def set_up(outputs: Path, mode: str) -> None:
    """Silence wandb and keep its files below ``outputs``; the user's environment has priority."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_DATA_DIR", str(outputs / "wandb" / ".data"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(outputs / "wandb" / ".cache"))
    if os.environ.get("WANDB_MODE") not in (None, *MODES_OF_ENV):  # empty, which wandb refuses
        del os.environ["WANDB_MODE"]
    import wandb

    # x_disable_viewer (a 10 s query) has an effect only here, not in init's settings.
    settings = wandb.Settings(mode=mode, silent=True, x_disable_viewer=True)  # type: ignore[arg-type]
    wandb.setup(settings)
    _close_at_exit()


@functools.cache
def _close_at_exit() -> None:
    """Close the service before wandb does, whose own hook prints a traceback if it has died."""
    atexit.register(close_service)


def close_service() -> None:
    """Close the service process, which may have died; a run of this process may start another."""
    import wandb

    PROCESS.service_number += 1
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown(exit_code=1 if PROCESS.live else 0)


def restart_service(outputs: Path) -> None:
    """Restart the service process in offline mode, unless another run still uses it."""
    import wandb

    if not PROCESS.live and wandb.run is None:
        close_service()
        set_up(outputs, "offline")


@functools.cache
def has_key(*, is_required: bool) -> bool:
    """Return whether this machine has a W&B key; neither prompts nor uses the network."""
    import wandb

    with contextlib.suppress(Exception):
        if wandb.login(prompt=False, verify=False):
            return True
    level = logging.WARNING if is_required else logging.INFO
    _LOG.log(level, "no W&B key (WANDB_API_KEY or `wandb login`): tracking offline")
    return False


def run_folders(outputs: Path, run_id: str) -> set[Path]:
    """Return this run's folders, without those of runs whose id only ends the same."""
    own = glob.escape(run_id)
    names = (f"{kind}-????????_??????-{own}" for kind in ("run", "offline-run"))
    return {path for name in names for path in (outputs / "wandb").glob(name)}


def has_rows(folder: Path) -> bool:
    """Return whether a run's folder holds anything that `wandb sync` could upload."""
    return any(path.stat().st_size > _EMPTY_LOG_BYTES for path in folder.glob("*.wandb"))


def waits_for_sync(folder: Path) -> bool:
    """Return whether a run's folder was recorded offline and has not been uploaded."""
    return folder.name.startswith("offline-run-") and not any(folder.glob("*.synced"))


def last_step(folder: Path) -> int:
    """Return the last step in a run's folder, which a killed run may have left incomplete; or 0."""
    from wandb.util import get_core_path

    try:
        (log,) = folder.glob("*.wandb")
        # What `wandb leet inspect` runs, without its seconds of imports.
        options = ("--no-observability", "--summary", "--json", "--run-file", str(log))
        command = [get_core_path(), "leet", "inspect", *options, str(folder.parent)]
        done = subprocess.run(command, capture_output=True, timeout=_INSPECT_TIMEOUT_S, check=True)
        return int(json.loads(done.stdout)["step"] or 0)
    except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError) as error:
        _LOG.warning("%s cannot be read; rows may be uploaded twice (%s)", folder, error)
        return 0


def upload_error(folder: Path) -> str | None:
    """Return why the service gave up an upload, which it says only in its log; None if it did not.

    It does so when the server refuses a running run, for example because its key was revoked.
    """
    try:
        lines = (folder / "logs" / "debug-internal.log").read_text(errors="replace").splitlines()
    except OSError:
        return None
    fatal = next((line for line in lines if "filestream: fatal error" in line), None)
    return None if fatal is None else fatal.partition("fatal error: ")[2].partition(" url=")[0]
