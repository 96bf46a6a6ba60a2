"""Weights & Biases as a sink that does not stop a run, slow it down, or leak its secrets.

Facts about wandb 0.31 behind the design: with an unreachable server, ``init`` blocks for 100 s and
``finish`` forever; command line and machine are uploaded by default, code and diff possibly. wandb
is imported only when a sink starts.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppo_lab.tracking.base import Record, RunInfo, Sink, fitted_id
from ppo_lab.tracking.config import MAX_TAG_CHARS, TrackingConfig, TrackingMode
from ppo_lab.tracking.wandb_service import (
    PROCESS,
    close_service,
    has_key,
    has_rows,
    last_step,
    restart_service,
    run_folders,
    set_up,
    upload_error,
    waits_for_sync,
)
from ppo_lab.tracking.wandb_sweep import check_used
from ppo_lab.utils.json_files import to_jsonable
from ppo_lab.utils.redaction import mask, mask_values

if TYPE_CHECKING:
    import wandb

__all__ = ["WandbSink"]

_LOG = logging.getLogger(__name__)

_FLUSH_S = 2.0  # how much of a killed run is lost at most; wandb's default is 15
# Time for a run's finish once the server is known to be unreachable; a stack has many runs.
_BROKEN_FINISH_S = 0.05
_MAX_NAME_CHARS = 128
_POLICY = ("checkpoint", "best", ".hydra/config.yaml")  # the second if the run was evaluated


class WandbSink(Sink):
    """Records one run in ``<outputs>/wandb``, and uploads it if a server is available.

    Several sinks may be open in one process (the lanes of a stack), each with its own W&B run.
    """

    def __init__(self, config: TrackingConfig, outputs: Path) -> None:
        """Open nothing; ``outputs`` will contain ``wandb/``, unless WANDB_DIR names a folder."""
        self._config = config
        self._outputs = Path(os.environ.get("WANDB_DIR") or outputs).resolve()
        self._run: wandb.Run | None = None
        self._is_online = False
        self._folder: Path | None = None
        self._run_folder = Path()  # ours, not W&B's
        self._url: str | None = None
        self._sent = 0  # iterations that an earlier process has recorded
        self._id = ""
        self._service_number = 0  # of the service process that has the run

    @property
    def link(self) -> str | None:
        """The run's page, or the command that uploads it; None when W&B is disabled."""
        if self._is_online and self._url:
            return self._url
        return f"wandb sync {shlex.quote(str(self._folder))}" if self._folder else None

    @property
    def run_id(self) -> str | None:
        """The run's id in W&B, under which a resumed run continues; None without W&B."""
        return self._id or None

    def start(self, run: RunInfo) -> None:
        """Open a run: online if that is requested and succeeds within seconds, else offline.

        A resumed run continues under its id, offline if its first part has not been uploaded;
        iterations that are recorded already are skipped.

        Raises:
            ConfigError: A W&B sweep sets what the run does not use.
        """
        mode = self._config.resolved_mode()
        if mode == "disabled":
            return
        check_used(run.config)
        self._run_folder = run.folder
        if PROCESS.is_online_broken:
            mode = "offline"
        run_id = _choose_id(run)
        earlier = run_folders(self._outputs, run_id) if run.resumed_at else set()
        if any(map(waits_for_sync, earlier)):
            mode = "offline"  # `wandb sync` uploads the parts in their order
        self._outputs.mkdir(parents=True, exist_ok=True)
        set_up(self._outputs, mode)
        opened = None
        if mode == "online" and has_key(is_required=self._config.mode is TrackingMode.online):
            opened = self._init_online(run, run_id)
        self._is_online = opened is not None
        if opened is None:
            self._sent = max(map(last_step, earlier), default=0)
            opened = self._init_offline(run, run_id)
        self._run = opened
        self._service_number = PROCESS.service_number
        self._id = opened.id
        PROCESS.live.add(self._id)
        self._folder, self._url = Path(opened.dir).parent, opened.url
        opened.define_metric("global_step")
        opened.define_metric("*", step_metric="global_step")

    def describe(self, values: Mapping[str, Any]) -> None:
        """Add to the run's config."""
        if self._run is not None:
            config: Any = self._run.config
            config.update(to_jsonable(values), allow_val_change=True)

    def record(self, record: Record) -> None:
        """Queue one row for wandb's service process; takes 0.1 to 0.5 ms.

        The step is the iteration: a server ignores steps that it has, of a run that is resumed.
        """
        if self._run is None or record.iteration <= self._sent:
            return
        import wandb

        histograms = {
            name: wandb.Histogram(np_histogram=(np.asarray(it.counts), np.asarray(it.edges)))
            for name, it in record.histograms.items()
        }
        axes = {"global_step": record.global_step, "iteration": record.iteration}
        row = {**record.metrics, **histograms, **axes}
        if record.samples:
            row["samples"] = wandb.Table(
                columns=["text", "reward"], data=[*map(list, record.samples)]
            )
        try:
            self._run.log(row, step=record.iteration, commit=True)
        except ConnectionError:
            self._lose_service()
            raise

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Write the summary and close the run; wait at most ``finish_timeout_s``.

        Raises:
            ConnectionError: The service has died or the server has refused the rest of the run;
                ``link`` is then the command that uploads it.
        """
        run, self._run = self._run, None
        if run is None:
            return
        PROCESS.live.discard(self._id)
        try:
            try:
                self._log_results(run)
            finally:
                self._end(run, summary, exit_code)
        except ConnectionError:
            self._lose_service()
            raise

    def _end(self, run: wandb.Run, summary: Mapping[str, Any], exit_code: int) -> None:
        run.summary.update(mask_values(to_jsonable(summary)))
        if (status := summary.get("status", "finished")) != "finished":
            run.tags = (*(run.tags or ()), str(status))  # filters pruned or failed runs
        if self._is_online and PROCESS.is_upload_broken:
            self._close_in_background(run, exit_code)
        else:
            self._close(run, exit_code)

    def _log_results(self, run: wandb.Run) -> None:
        """Log what there is at the end only: the policy, as ``load_policy`` and play read it."""
        if self._config.log_model:
            self._log_artifact(run, "model", *_POLICY)

    def _log_artifact(self, run: wandb.Run, kind: str, first: str, *more: str) -> None:
        """Log files and folders of the run's folder as one artifact if the first is there."""
        import wandb

        if not (self._run_folder / first).exists():
            return
        artifact = wandb.Artifact(f"{self._id.replace('=', '-')}-{kind}", type=kind)
        for name in (first, *more):
            path = self._run_folder / name
            if path.exists():
                (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path), name=name)
        run.log_artifact(artifact)

    def _lose_service(self) -> None:
        """Forget a dead service process; what it has written can be uploaded, if there is any."""
        PROCESS.live.discard(self._id)
        self._is_online, self._run = False, None
        if self._folder is not None and not has_rows(self._folder):
            self._folder = None
        if self._service_number == PROCESS.service_number:  # not one that was started since
            close_service()

    def _close(self, run: wandb.Run, exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            self._is_online = False  # the link is now the command that uploads the rest
            if not PROCESS.is_upload_broken:
                PROCESS.is_online_broken = PROCESS.is_upload_broken = True
                _LOG.warning("the W&B server stopped responding; upload the rest: %s", self.link)
        if self._is_online and self._folder is not None and (reason := upload_error(self._folder)):
            self._is_online, PROCESS.is_online_broken = False, True
            raise RuntimeError(f"the server refused the rest of the run: {reason}")

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

    def _init_online(self, run: RunInfo, run_id: str) -> wandb.Run | None:
        """Return an uploading run, or None after switching this process to offline."""
        try:
            return self._init(run, "online", run_id)
        except Exception as error:
            PROCESS.is_online_broken = True
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            _LOG.warning("W&B did not accept the run; tracking offline from now on (%s)", reason)
            restart_service(self._outputs)  # it still holds the run's id
        return None

    def _init_offline(self, run: RunInfo, run_id: str) -> wandb.Run:
        try:
            return self._init(run, "offline", run_id)
        except Exception:
            # Either a failed online attempt holds the id, or wandb's service process has died.
            restart_service(self._outputs)
            suffix = "-offline" if PROCESS.live else ""
            return self._init(run, "offline", fitted_id(run_id + suffix))

    def _init(self, run: RunInfo, mode: str, run_id: str) -> wandb.Run:
        """Open a W&B run; delete a failed attempt's folder, which `wandb sync` would upload."""
        import wandb

        config = self._config
        more = os.environ.get("WANDB_TAGS", "").split(",")
        tags = [mask(tag)[:MAX_TAG_CHARS] for tag in (*run.tags, *config.tags, *more) if tag]
        before = run_folders(self._outputs, run_id)
        try:
            return wandb.init(
                mode=mode,  # type: ignore[arg-type]
                dir=str(self._outputs),
                id=run_id,
                # A page that exists keeps its name, which may have been changed there.
                name=None if run.resumed_at and mode == "online" else _choose_name(run),
                project=config.resolved_project,
                entity=config.entity,
                group=config.group or os.environ.get("WANDB_RUN_GROUP") or run.group,
                tags=list(dict.fromkeys(tags)),
                notes=config.notes and mask(config.notes),
                job_type=os.environ.get("WANDB_JOB_TYPE") or run.job_type,
                config=mask_values(to_jsonable(run.config)),
                resume="allow",  # without it `wandb sync` overwrites a resumed run's first part
                reinit="create_new",  # the lanes of a stack are concurrent runs
                settings=_settings(config),
            )
        except BaseException:
            for folder in run_folders(self._outputs, run_id) - before:
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
        disable_job_creation=True,
        host=os.environ.get("WANDB_HOST", ""),  # else this machine's name
        x_disable_meta=True,  # it includes the command line
        x_save_requirements=False,
        x_disable_stats=bool(PROCESS.live),  # measure the machine once, not per lane
        x_stats_pid=os.getpid(),  # wandb's default is the process that imported it
        x_transaction_log_flush_interval=_FLUSH_S,
    )


def _choose_id(run: RunInfo) -> str:
    """Return the run's id; only the first single run of a process takes that of WANDB_RUN_ID."""
    chosen = os.environ.get("WANDB_RUN_ID")
    is_single = run.group is None and run.job_type == "train"
    if not chosen or not is_single or PROCESS.is_id_taken:
        return fitted_id(run.id)
    PROCESS.is_id_taken = True
    return chosen


def _choose_name(run: RunInfo) -> str:
    """Return the name that is shown: WANDB_NAME, to which a run of a group adds its own."""
    chosen = os.environ.get("WANDB_NAME")
    if not chosen or run.is_named:
        name = run.name
    else:
        name = chosen if run.group is None else f"{chosen}__{run.name}"
    return mask(name)[:_MAX_NAME_CHARS]
