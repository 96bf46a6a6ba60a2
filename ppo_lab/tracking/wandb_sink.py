"""Weights & Biases as a sink that neither stops, nor slows, nor exposes a run.

Facts about wandb 0.31 behind the choices: an unreachable server holds ``init`` for 100 s and
``finish`` without end, argv and machine travel by default, and code and diff may. wandb is
imported only when a sink starts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppo_lab.tracking.base import Record, RunInfo, Sink
from ppo_lab.tracking.config import TrackingConfig, TrackingMode
from ppo_lab.utils.json_files import strict

if TYPE_CHECKING:
    import wandb

__all__ = ["PROCESS", "WandbSink", "decide_mode", "has_key", "prepare", "restart_service"]

_LOG = logging.getLogger(__name__)

_FLUSH_S = 2.0
"""How much of a killed run is lost at most; wandb's own value is 15."""
_GIVEN_UP_FINISH_S = 0.05
"""What a run's finish may still take once the server is known to be away; a stack has many."""
_MAX_TAG_CHARS = 64


class WandbSink(Sink):
    """Records one run in ``<outputs>/wandb``, uploading meanwhile when a server can be had.

    Several sinks may be alive in a process (the lanes of a stack); each has its own W&B run.
    """

    def __init__(self, config: TrackingConfig, outputs: Path) -> None:
        """Keep the choices; ``outputs`` is the folder that will contain ``wandb/``."""
        self._config = config
        self._outputs = outputs.resolve()
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
        """Open a run, online when that is wanted and works within seconds, else offline."""
        mode = decide_mode(self._config.mode)
        if mode == "disabled":
            return
        self._outputs.mkdir(parents=True, exist_ok=True)
        prepare(self._outputs, mode)
        if mode == "online" and has_key(is_demanded=self._config.mode is TrackingMode.online):
            self._run = self._init_online(run)
        self._is_online = self._run is not None
        if self._run is None:
            self._run = self._init_offline(run)
        PROCESS.live.add(self._run.id)
        self._folder = Path(self._run.dir).parent
        self._url = self._run.url
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")

    def record(self, record: Record) -> None:
        """Queue one row for wandb's own process; takes 0.1 to 0.5 ms."""
        if self._run is None:
            return
        import wandb

        row: dict[str, Any] = dict(record.metrics)
        for name, histogram in record.histograms.items():
            counts_and_edges = (np.asarray(histogram.counts), np.asarray(histogram.edges))
            row[name] = wandb.Histogram(np_histogram=counts_and_edges)
        self._run.log(row | {"global_step": record.global_step, "iteration": record.iteration})

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Write the summary and close the run, waiting ``finish_timeout_s`` at most."""
        run, self._run = self._run, None
        if run is None:
            return
        PROCESS.live.discard(run.id)
        try:
            run.summary.update(strict(summary))
            status = summary.get("status", "finished")
            if status != "finished":  # so that pruned runs and full memories can be filtered out
                run.tags = (*(run.tags or ()), str(status))
        finally:
            if self._is_online and PROCESS.is_upload_broken:
                self._close_in_background(run, exit_code)
            else:
                self._close(run, exit_code)

    def _close(self, run: wandb.Run, exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            self._is_online = False  # the link is now the command that uploads the rest
            if not PROCESS.is_upload_broken:
                PROCESS.is_online_broken = PROCESS.is_upload_broken = True
                _LOG.warning("W&B's server stopped answering; upload the rest: %s", self.link)

    def _close_in_background(self, run: wandb.Run, exit_code: int) -> None:
        """Close without waiting: the server is away, and other runs have waited for it."""

        def close() -> None:
            try:
                self._close(run, exit_code)
            except Exception:  # the run has gone on; its file has it all
                _LOG.debug("closing a W&B run in the background failed", exc_info=True)

        thread = threading.Thread(target=close, daemon=True)
        thread.start()
        thread.join(_GIVEN_UP_FINISH_S)
        if thread.is_alive():
            self._is_online = False

    def _init_online(self, run: RunInfo) -> wandb.Run | None:
        """Return an uploading run, or None, having switched this process to offline."""
        try:
            return self._init(run, "online", run.id)
        except Exception as error:
            PROCESS.is_online_broken = True
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            _LOG.warning("W&B did not take the run, tracking offline from here on (%s)", reason)
        restart_service(self._outputs)  # it still holds the run's id
        return None

    def _init_offline(self, run: RunInfo) -> wandb.Run:
        try:
            return self._init(run, "offline", run.id)
        except Exception:
            # Either a failed online attempt holds the id, or wandb's process has died since.
            restart_service(self._outputs)
            run_id = f"{run.id}-offline" if PROCESS.live else run.id
            return self._init(run, "offline", run_id)

    def _init(self, run: RunInfo, mode: str, run_id: str) -> wandb.Run:
        """Open a W&B run; a failed attempt leaves no folder, `wandb sync` would make it a run."""
        before = _run_folders(self._outputs, run_id)
        try:
            return self._call_init(run, mode, run_id)
        except BaseException:
            for folder in _run_folders(self._outputs, run_id) - before:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _call_init(self, run: RunInfo, mode: str, run_id: str) -> wandb.Run:
        import wandb

        config = self._config
        tags = dict.fromkeys(tag[:_MAX_TAG_CHARS] for tag in (*run.tags, *config.tags) if tag)
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
            config=strict(run.config),
            resume="allow",  # without it `wandb sync` overwrites a resumed run's first part
            reinit="create_new",  # the lanes of a stack are runs at the same time
            settings=self._settings(),
        )

    def _settings(self) -> wandb.Settings:
        import wandb

        config = self._config
        return wandb.Settings(
            console="off",  # Hydra has a log file, and stdout may hold anything
            silent=True,
            init_timeout=config.init_timeout_s,
            finish_timeout=config.finish_timeout_s,
            finish_timeout_raises=True,
            save_code=config.save_code,
            disable_code=not config.save_code,
            disable_git=not config.save_code,
            x_disable_meta=True,  # argv is part of it
            x_disable_machine_info=not config.save_code,  # wandb saves code along with it
            x_save_requirements=False,
            x_disable_stats=bool(PROCESS.live),  # the machine is measured once, not per lane
            x_transaction_log_flush_interval=_FLUSH_S,
        )


def _run_folders(outputs: Path, run_id: str) -> set[Path]:
    """Return this run's folders, and not those of a run whose id ends alike."""
    name = re.compile(rf"(offline-)?run-\d{{8}}_\d{{6}}-{re.escape(run_id)}")
    return {path for path in (outputs / "wandb").glob("*run-*") if name.fullmatch(path.name)}


_LOG = logging.getLogger(__name__)

# WANDB_MODE's other spellings, from wandb's own settings.
_MODES_OF_ENV = {"run": "online", "dryrun": "offline", "shared": "online"}


@dataclass
class _Process:
    is_online_broken: bool = False  # no further run tries the server
    is_upload_broken: bool = False  # no further finish waits for it
    has_key: bool | None = None  # None: not looked yet
    live: set[str] = field(default_factory=set)  # ids of runs that have not finished


PROCESS = _Process()


def decide_mode(wanted: str) -> str:
    """Return online, offline or disabled for ``tracking.mode``; ``auto`` honours WANDB_MODE."""
    mode = wanted if wanted != "auto" else os.environ.get("WANDB_MODE") or "online"
    mode = _MODES_OF_ENV.get(mode, mode)
    return "offline" if mode == "online" and PROCESS.is_online_broken else mode


def prepare(outputs: Path, mode: str) -> None:
    """Point wandb's own files below ``outputs`` and quieten it; the user's environment wins."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_DATA_DIR", str(outputs / "wandb" / ".data"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(outputs / "wandb" / ".cache"))
    import wandb

    # Only here does x_disable_viewer act; given to init it does not (a 10 s query).
    settings = wandb.Settings(mode=mode, silent=True, x_disable_viewer=True)  # type: ignore[arg-type]
    wandb.setup(settings)


def has_key(*, is_demanded: bool) -> bool:
    """Return whether this machine has a W&B key, without a prompt and without the network."""
    if PROCESS.has_key is None:
        import wandb

        PROCESS.has_key = False
        with contextlib.suppress(Exception):
            PROCESS.has_key = wandb.login(prompt=False, verify=False)
        if not PROCESS.has_key:
            level = logging.WARNING if is_demanded else logging.INFO
            _LOG.log(level, "no W&B key (WANDB_API_KEY or `wandb login`): tracking offline")
    return PROCESS.has_key


def restart_service(outputs: Path) -> None:
    """Start wandb's own process anew, offline, unless another run here still needs the old one."""
    import wandb

    if not PROCESS.live and wandb.run is None:
        with contextlib.suppress(Exception):  # a dead service cannot say goodbye
            wandb.teardown()
        prepare(outputs, "offline")
