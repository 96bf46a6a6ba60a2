"""Weights & Biases as a sink that does not stop a run, slow it down, or leak its secrets.

Facts about wandb 0.31 behind the design: with an unreachable server, ``init`` blocks for 100 s and
``finish`` forever; command line and machine are uploaded by default, code and diff possibly. wandb
is imported only when a sink starts.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shlex
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppo_lab.tracking.base import Record, RunInfo, Sink
from ppo_lab.tracking.config import MAX_TAG_CHARS, TrackingConfig, TrackingMode
from ppo_lab.utils.json_files import to_jsonable

if TYPE_CHECKING:
    import wandb

__all__ = ["WandbSink"]

_LOG = logging.getLogger(__name__)

_FLUSH_S = 2.0  # how much of a killed run is lost at most; wandb's default is 15
# Time for a run's finish once the server is known to be unreachable; a stack has many runs.
_BROKEN_FINISH_S = 0.05
# Other spellings of WANDB_MODE, from wandb's own settings.
_MODES_OF_ENV = {"run": "online", "dryrun": "offline", "shared": "online"}


@dataclass
class _Process:
    """What all sinks of this process know about the server."""

    is_online_broken: bool = False  # no further run tries the server
    is_upload_broken: bool = False  # no further finish waits for it
    live: set[str] = field(default_factory=set)  # ids of unfinished runs


_PROCESS = _Process()


class WandbSink(Sink):
    """Records one run in ``<outputs>/wandb``, and uploads it if a server is available.

    Several sinks may be open in one process (the lanes of a stack), each with its own W&B run.
    """

    def __init__(self, config: TrackingConfig, outputs: Path) -> None:
        """Open nothing; ``outputs`` is the folder that will contain ``wandb/``."""
        self._config, self._outputs = config, outputs.resolve()
        self._run: wandb.Run | None = None
        self._is_online = False
        self._folder: Path | None = None
        self._url: str | None = None

    @property
    def link(self) -> str | None:
        """The run's page, or the command that uploads it; None when W&B is disabled."""
        if self._is_online and self._url:
            return self._url
        return f"wandb sync {shlex.quote(str(self._folder))}" if self._folder else None

    def start(self, run: RunInfo) -> None:
        """Open a run: online if that is requested and succeeds within seconds, else offline."""
        mode = _choose_mode(self._config.mode)
        if mode == "disabled":
            return
        self._outputs.mkdir(parents=True, exist_ok=True)
        _set_up(self._outputs, mode)
        opened = None
        if mode == "online" and _has_key(is_required=self._config.mode is TrackingMode.online):
            opened = self._init_online(run)
        self._is_online = opened is not None
        if opened is None:
            opened = self._init_offline(run)
        self._run = opened
        _PROCESS.live.add(opened.id)
        self._folder, self._url = Path(opened.dir).parent, opened.url
        opened.define_metric("global_step")
        opened.define_metric("*", step_metric="global_step")

    def record(self, record: Record) -> None:
        """Queue one row for wandb's service process; takes 0.1 to 0.5 ms."""
        if self._run is None:
            return
        import wandb

        histograms = {
            name: wandb.Histogram(np_histogram=(np.asarray(it.counts), np.asarray(it.edges)))
            for name, it in record.histograms.items()
        }
        axes = {"global_step": record.global_step, "iteration": record.iteration}
        self._run.log({**record.metrics, **histograms, **axes})

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Write the summary and close the run; wait at most ``finish_timeout_s``."""
        run, self._run = self._run, None
        if run is None:
            return
        _PROCESS.live.discard(run.id)
        try:
            run.summary.update(to_jsonable(summary))
            if (status := summary.get("status", "finished")) != "finished":
                run.tags = (*(run.tags or ()), str(status))  # filters pruned or failed runs
        finally:
            if self._is_online and _PROCESS.is_upload_broken:
                self._close_in_background(run, exit_code)
            else:
                self._close(run, exit_code)

    def _close(self, run: wandb.Run, exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            self._is_online = False  # the link is now the command that uploads the rest
            if not _PROCESS.is_upload_broken:
                _PROCESS.is_online_broken = _PROCESS.is_upload_broken = True
                _LOG.warning("the W&B server stopped responding; upload the rest: %s", self.link)

    def _close_in_background(self, run: wandb.Run, exit_code: int) -> None:
        """Close without waiting: another run has already waited for the unreachable server."""

        def close() -> None:
            try:
                self._close(run, exit_code)
            except Exception:  # nobody waits for the result, and the run's file is complete
                _LOG.debug("closing a W&B run in the background failed", exc_info=True)

        thread = threading.Thread(target=close, daemon=True)
        thread.start()
        thread.join(_BROKEN_FINISH_S)
        if thread.is_alive():
            self._is_online = False

    def _init_online(self, run: RunInfo) -> wandb.Run | None:
        """Return an uploading run, or None after switching this process to offline."""
        try:
            return self._init(run, "online", run.id)
        except Exception as error:
            _PROCESS.is_online_broken = True
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            _LOG.warning("W&B did not accept the run; tracking offline from now on (%s)", reason)
            _restart_service(self._outputs)  # it still holds the run's id
        return None

    def _init_offline(self, run: RunInfo) -> wandb.Run:
        try:
            return self._init(run, "offline", run.id)
        except Exception:
            # Either a failed online attempt holds the id, or wandb's service process has died.
            _restart_service(self._outputs)
            return self._init(run, "offline", run.id + ("-offline" if _PROCESS.live else ""))

    def _init(self, run: RunInfo, mode: str, run_id: str) -> wandb.Run:
        """Open a W&B run; delete a failed attempt's folder, which `wandb sync` would upload."""
        import wandb

        config = self._config
        tags = dict.fromkeys(tag[:MAX_TAG_CHARS] for tag in (*run.tags, *config.tags) if tag)
        before = _run_folders(self._outputs, run_id)
        try:
            return wandb.init(
                mode=mode,  # type: ignore[arg-type]
                dir=str(self._outputs),
                id=run_id,
                name=run.name,
                project=config.project,
                entity=config.entity,
                group=config.group or run.group,
                tags=list(tags),
                notes=config.notes,
                job_type=run.job_type,
                config=to_jsonable(run.config),
                resume="allow",  # without it `wandb sync` overwrites a resumed run's first part
                reinit="create_new",  # the lanes of a stack are concurrent runs
                settings=_settings(config),
            )
        except BaseException:
            for folder in _run_folders(self._outputs, run_id) - before:
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _settings(config: TrackingConfig) -> wandb.Settings:
    import wandb

    return wandb.Settings(
        console="off",  # Hydra writes a log file, and stdout may contain anything
        silent=True,
        init_timeout=config.init_timeout_s,
        finish_timeout=config.finish_timeout_s,
        finish_timeout_raises=True,
        save_code=config.save_code,
        disable_code=not config.save_code,
        disable_git=not config.save_code,
        x_disable_meta=True,  # it includes the command line
        x_disable_machine_info=not config.save_code,  # wandb saves code along with it
        x_save_requirements=False,
        x_disable_stats=bool(_PROCESS.live),  # measure the machine once, not per lane
        x_transaction_log_flush_interval=_FLUSH_S,
    )


def _run_folders(outputs: Path, run_id: str) -> set[Path]:
    """Return this run's folders, without those of runs whose id only ends the same."""
    names = (f"{kind}-????????_??????-{run_id}" for kind in ("run", "offline-run"))
    return {path for name in names for path in (outputs / "wandb").glob(name)}


def _choose_mode(requested: TrackingMode) -> str:
    """Return online, offline or disabled for ``tracking.mode``; ``auto`` follows WANDB_MODE."""
    is_auto = requested is TrackingMode.auto
    mode = (os.environ.get("WANDB_MODE") or "online") if is_auto else requested.value
    mode = _MODES_OF_ENV.get(mode, mode)
    return "offline" if mode == "online" and _PROCESS.is_online_broken else mode


def _set_up(outputs: Path, mode: str) -> None:
    """Silence wandb and keep its files below ``outputs``; the user's environment has priority."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_DATA_DIR", str(outputs / "wandb" / ".data"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(outputs / "wandb" / ".cache"))
    import wandb

    # x_disable_viewer (a 10 s query) has an effect only here, not in init's settings.
    settings = wandb.Settings(mode=mode, silent=True, x_disable_viewer=True)  # type: ignore[arg-type]
    wandb.setup(settings)


@functools.cache
def _has_key(*, is_required: bool) -> bool:
    """Return whether this machine has a W&B key; neither prompts nor uses the network."""
    import wandb

    with contextlib.suppress(Exception):
        if wandb.login(prompt=False, verify=False):
            return True
    level = logging.WARNING if is_required else logging.INFO
    _LOG.log(level, "no W&B key (WANDB_API_KEY or `wandb login`): tracking offline")
    return False


def _restart_service(outputs: Path) -> None:
    """Restart wandb's service process in offline mode, unless another run still uses it."""
    import wandb

    if not _PROCESS.live and wandb.run is None:
        with contextlib.suppress(Exception):  # the service may have died
            wandb.teardown()
        _set_up(outputs, "offline")
