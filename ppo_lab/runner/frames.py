"""Runs as a pandas frame, which is imported only here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppo_lab.config.foreign import read_plain
from ppo_lab.runner.stored import CONFIG_FILE, stored_summary
from ppo_lab.tracking import read_metrics
from ppo_lab.tracking.local import METRICS_FILE, SUMMARY_FILE
from ppo_lab.utils.json_files import flat

if TYPE_CHECKING:
    import pandas

__all__ = ["load_runs"]


def load_runs(path: str | Path, *, curves: bool = False) -> pandas.DataFrame:
    """Return the runs in or below a folder: a run, a grid, a study, or several of them.

    Args:
        path: The folder, such as ``outputs/grids/<grid>``.
        curves: Return one row per run and iteration in place of one row per run.

    Returns:
        Frame with the column ``folder``, where the run is relative to ``path``. Of runs: the keys
        of the config as ``config.epsilon``, and those of the summary, as ``final_return`` or
        ``time.update_s``; a run without a summary has its ``status`` and ``reason``. Of
        ``curves``: ``iteration``, ``global_step`` and all metrics but histograms.

    Raises:
        FileNotFoundError: There is no run.
        ImportError: pandas is not installed.
        OSError, ValueError: A file of a run cannot be read.

    Example:
        >>> load_runs("no_such_folder")
        Traceback (most recent call last):
        FileNotFoundError: no run in or below no_such_folder
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("load_runs needs pandas: pip install 'ppo_lab[pandas]'") from error
    path = Path(path)
    found = {file.parent for name in (METRICS_FILE, SUMMARY_FILE) for file in path.rglob(name)}
    if not found:
        raise FileNotFoundError(f"no run in or below {path}")
    read = _read_curve if curves else _read_summary
    rows = [
        {"folder": str(folder.relative_to(path))} | row
        for folder in sorted(found)
        for row in read(folder)
    ]
    return pandas.DataFrame(rows)


def _read_summary(folder: Path) -> list[dict[str, Any]]:
    config = folder / CONFIG_FILE
    settings = flat(read_plain(config), "config.") if config.is_file() else ()
    summary = {key: value for key, value in stored_summary(folder).items() if key != "folder"}
    return [dict(settings) | dict(flat(summary))]


def _read_curve(folder: Path) -> list[dict[str, Any]]:
    path = folder / METRICS_FILE
    rows = read_metrics(path) if path.is_file() else []
    return [{k: v for k, v in row.items() if not isinstance(v, Mapping)} for row in rows]
