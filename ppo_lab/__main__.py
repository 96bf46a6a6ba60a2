"""``python -m ppo_lab``: one run, or with ``-m`` a grid of them."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from ppo_lab.compose import check_jobs, load, register
from ppo_lab.paths import CONF_DIR
from ppo_lab.refusals import explain
from ppo_lab.run import Status, run_in_folder
from ppo_lab.tracking import grid_table, places, reasons, summary_panel

__all__ = ["main"]

EXIT_FAILED, EXIT_REFUSED = 1, 2
EXIT_TERMINATED = 128 + signal.SIGTERM

_summaries: list[dict[str, object]] = []
"""What the jobs of this command came to; Hydra's launcher returns nothing to us."""


def job(cfg: DictConfig) -> float | None:
    """Run one job in the folder that Hydra made for it; return its final return.

    A failure is an outcome, not an exception: Hydra would stop telling of the others.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    is_grid = hydra_config.mode is RunMode.MULTIRUN
    summary = run_in_folder(
        load(cfg),
        folder,
        overrides=list(hydra_config.overrides.task),
        group=folder.parent.name if is_grid else None,
    )
    _summaries.append(summary)
    final_return = summary.get("final_return")
    return float(final_return) if isinstance(final_return, float) else None


def main() -> None:
    """Check every job of the command line, run them, show what came of it.

    Exit status: 0 when every job finished, 1 when one did not, 2 for a refused command line.
    """
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    register()
    arguments = _hydra_arguments()
    if arguments is not None:
        _check(*arguments)
    hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")(job)()
    _show(is_grid=arguments is not None and arguments[1])
    if any(summary["status"] != Status.finished.value for summary in _summaries):
        sys.exit(EXIT_FAILED)


def _hydra_arguments() -> tuple[list[str], bool, str | None, str | None] | None:
    """Return overrides, whether they are a grid, --config-dir and --config-name.

    None for the commands that train nothing: --help, --cfg, --info, shell completion.
    """
    from hydra._internal.utils import get_args_parser

    args = get_args_parser().parse_args()
    if args.help or args.hydra_help or args.info or args.cfg or args.shell_completion:
        return None
    return args.overrides, args.multirun, args.config_dir, args.config_name


def _check(
    overrides: list[str], is_multirun: bool, config_dir: str | None, config_name: str | None
) -> None:
    """Leave with status 2 and a short message if any job's config cannot be used."""
    try:
        check_jobs(
            overrides, is_multirun=is_multirun, config_dir=config_dir, config_name=config_name
        )
    except Exception as error:
        message = explain(error, overrides)
        if message is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(message, file=sys.stderr)  # noqa: T201 - what the command says
        sys.exit(EXIT_REFUSED)


def _show(*, is_grid: bool) -> None:
    """Print the summary panel of a run, or the table of a grid, to stdout."""
    console = Console()
    if is_grid and _summaries:
        console.print(grid_table(_summaries))
        if failed := reasons(_summaries):
            console.print(failed, style="red", soft_wrap=True, highlight=False, markup=False)
        grid = {"folder": Path(str(_summaries[0]["folder"])).parent}
        console.print(places(grid), soft_wrap=True, highlight=False, markup=False)
        return
    for summary in _summaries:
        console.print(summary_panel(summary))
        console.print(places(summary), soft_wrap=True, highlight=False, markup=False)


def _exit_on_sigterm(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    logging.getLogger(__name__).warning("SIGTERM: closing the run")
    sys.exit(EXIT_TERMINATED)


if __name__ == "__main__":
    main()
