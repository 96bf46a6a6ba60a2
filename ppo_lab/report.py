"""Show runs, grids and studies: python -m ppo_lab.report outputs/grids/... outputs/studies/...

Writes report.html, one page that opens without a network, and its figures as PNG files beside it.
With -o FILE.png (or .svg, .pdf) it draws the return curves alone. Reads only the runs' own files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ppo_lab.utils.redaction import printable

__all__ = ["main"]

_PICTURES = (".png", ".svg", ".pdf")
_FORMATS = (".html", *_PICTURES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the page or picture that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ppo_lab.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs, grids or studies")
    where = "page (.html) or picture of the returns; default report.html in the first folder"
    parser.add_argument("-o", "--output", type=Path, help=where)
    parsed = parser.parse_args(arguments)
    output: Path = parsed.output or parsed.folders[0] / "report.html"
    if output.suffix.lower() not in _FORMATS:
        return _fail(f"-o {output}: must end in one of {', '.join(_FORMATS)}")
    if not output.parent.is_dir() or output.is_dir() or output.is_fifo():
        return _fail(f"-o {output}: must be a file in a folder that exists")
    try:
        return _make(parsed.folders, output)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"-o {output}: {error.strerror}")


def _make(folders: Sequence[Path], output: Path) -> int:
    from ppo_lab.reports.groups import make_sections
    from ppo_lab.reports.loading import find_runs
    from ppo_lab.reports.pictures import draw_figure, draw_returns
    from ppo_lab.reports.report import write_page

    if output.suffix.lower() in _PICTURES:
        if not draw_returns(make_sections(find_runs(folders, _tell)), output):
            return _fail("in these runs no episode ended, or none of them could be read")
        sys.stdout.write(f"{output}\n")
        return 0
    figures = write_page(folders, output, _tell)
    sys.stdout.write(f"{output}\n")
    beside = output.with_suffix("")
    beside.mkdir(exist_ok=True)
    for figure in figures:
        draw_figure(figure, beside / f"{figure.name}.png")
    sys.stdout.write(f"{beside}/  {len(figures)} PNG files\n")
    return 0


def _tell(line: str) -> None:
    sys.stderr.write(f"ppo_lab.report: {line}\n")


def _fail(message: str) -> int:
    _tell(printable(message))
    return 2


if __name__ == "__main__":
    sys.exit(main())
