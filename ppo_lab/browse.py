"""Browse what is in outputs: python -m ppo_lab.browse [FOLDER].

Local W&B runs in W&B's terminal interface; with --optuna, studies in optuna-dashboard (extra
dashboard): one study live, several as copies in memory, as they were when the command began.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppo_lab.utils.redaction import printable

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

__all__ = ["find_runs_folder", "main"]


def find_runs_folder(start: Path) -> Path | None:
    """Return the folder that contains W&B runs: ``start``, its ``wandb``, a parent's, or None.

    ``wandb leet`` does not search subfolders. All runs of this project are in ``outputs/wandb``, so
    any folder below ``outputs`` leads there, or below WANDB_DIR, which is tried last.
    """
    start = start.absolute()
    elsewhere = [Path(path) for path in [os.environ.get("WANDB_DIR")] if path]
    for folder in (start, *(path / "wandb" for path in (start, *start.parents, *elsewhere))):
        if any(folder.glob("offline-run-*")) or any(folder.glob("run-*")):
            return folder
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Show W&B's terminal page or optuna-dashboard; return 2 if there is nothing to show."""
    parser = argparse.ArgumentParser(prog="python -m ppo_lab.browse", description=__doc__)
    parser.add_argument("folder", nargs="?", default="outputs", help="default outputs")
    parser.add_argument("--optuna", action="store_true", help="studies, in optuna-dashboard")
    parser.add_argument("--port", type=int, default=8080, help="of optuna-dashboard; default 8080")
    options = parser.parse_args(arguments)
    folder = Path(options.folder)
    return _browse_studies(folder, options.port) if options.optuna else _browse_runs(folder)


def _browse_runs(folder: Path) -> int:  # noqa: RET503 - exec ends it
    """Replace this process by ``wandb leet``; return 2 if there are no runs."""
    runs = find_runs_folder(folder)
    if runs is None:
        hint = "start one with python -m ppo_lab"
        return _refuse(f"no W&B runs in or above {printable(folder)}; {hint}")
    command = [sys.executable, "-m", "wandb", "leet", str(runs)]
    os.execv(command[0], command)


def _browse_studies(folder: Path, port: int) -> int:
    """Serve the studies on this machine alone until Ctrl-C."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        return _refuse("--optuna needs pip install 'ppo_lab[dashboard]'")
    # In outputs, in its studies, or of one study; those on a server have no file.
    patterns = ("study.db", "*/study.db", "studies/*/study.db")
    if not (files := sorted(path for pattern in patterns for path in folder.glob(pattern))):
        hint = "of one on a server: optuna-dashboard URL"
        return _refuse(f"no studies (study.db) in {printable(folder)}; {hint}")
    import optuna
    import optuna_dashboard

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage: BaseStorage = optuna.storages.InMemoryStorage()
    if not (num_read := sum(_copy_studies(path, storage) for path in files)):
        return 1
    told = f"{num_read} studies as they are now; name one study's folder to see it live"
    if len(files) == 1:
        storage = optuna.storages.RDBStorage(f"sqlite:///{files[0].resolve()}")
        told = f"{printable(files[0].parent)}, live"
    sys.stderr.write(f"{told}: http://127.0.0.1:{port}  (Ctrl-C ends it)\n")
    try:
        optuna_dashboard.run_server(storage, host="127.0.0.1", port=port)
    except OSError as error:
        return _refuse(f"port {port} cannot be used ({error.strerror}); choose another by --port")
    except KeyboardInterrupt:
        pass
    return 0


def _copy_studies(path: Path, storage: BaseStorage) -> int:
    """Copy the studies of a file, which is only read; return their number."""
    import optuna

    taken, copied = {study.study_name for study in storage.get_all_studies()}, 0
    try:
        source = optuna.storages.RDBStorage(f"sqlite:///file:{path.resolve()}?mode=ro&uri=true")
        for name in optuna.get_all_study_names(source):
            # Two folders of outputs may have studies of one name.
            shown = f"{name} in {path.parent}" if name in taken else name
            optuna.copy_study(
                from_study_name=name, from_storage=source, to_storage=storage, to_study_name=shown
            )
            copied += 1
    except Exception as error:  # of SQLAlchemy or Optuna: the other studies can be shown
        reason = str(error).strip().partition("\n")[0]
        sys.stderr.write(f"ppo_lab.browse: {printable(path)} cannot be read: {reason}\n")
    return copied


def _refuse(reason: str) -> int:
    sys.stderr.write(f"ppo_lab.browse: {reason}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
