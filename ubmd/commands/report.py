"""``ubmd report``: a run on one page, also of a run that was interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ubmd.analysis.page.document import write_page
from ubmd.arguments import Parser

__all__ = ["report"]


def report(argv: Sequence[str]) -> int:
    """Runs ``ubmd report``; returns the exit code.

    Raises:
        InputError: for something that is no folder of ``ubmd learn``.
    """
    parser = Parser(
        prog="ubmd report",
        description="Writes report.html into the folder of a run of `ubmd learn`, finished or not: settings, learning "
        "curves, exploration, calibration, the worst structures in 3D, cost, what was rejected, versions. The page "
        "needs no network.",
        epilog="example: ubmd report runs/ala2_demo/default",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    for run in parser.parse_args(list(argv)).runs:
        Console().print(str(write_page(Path(run))), soft_wrap=True, highlight=False, markup=False)
    return 0
