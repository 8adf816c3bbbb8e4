"""``ubmd report``: a run on one page, also of a run that was interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from rich.console import Console

from ubmd.analysis.page.document import write_page
from ubmd.arguments import Parser
from ubmd.errors import InputError

__all__ = ["report"]

ALLOW = "allow="


def report(argv: Sequence[str]) -> int:
    """Runs ``ubmd report``; returns the exit code.

    Raises:
        InputError: for something that is no folder of ``ubmd learn``, or an ``allow=`` that cannot be read.
    """
    parser = Parser(
        prog="ubmd report",
        description="Writes report.html into the folder of a run of `ubmd learn`, finished or not: settings, learning "
        "curves, exploration, calibration, the worst structures in 3D, cost, what was rejected, versions. The page "
        "needs no network.",
        epilog="example: ubmd report runs/ala2_demo/default, or with a model of another package: ubmd report RUN "
        "allow=my_package",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run folder; allow=PACKAGE or allow=[A,B]: what its potentials may name",
    )
    words = parser.parse_args(list(argv)).runs
    runs = [word for word in words if not word.startswith(ALLOW)]
    if not runs:
        raise InputError("give a run folder, e.g. ubmd report runs/ala2_demo/default")
    allow = [name for word in words if word.startswith(ALLOW) for name in _names(word)]
    for run in runs:
        Console().print(str(write_page(Path(run), allow)), soft_wrap=True, highlight=False, markup=False)
    return 0


def _names(override: str) -> list[str]:
    """The packages of an ``allow=``, read as other commands read it."""
    try:
        value = OverridesParser.create().parse_override(override).value()
    except HydraException as error:
        raise InputError(f"cannot read {override}; write allow=my_package or allow=[a,b]") from error
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]
