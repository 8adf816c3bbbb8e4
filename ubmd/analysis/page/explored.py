"""Pictures of what a run explored: those that it has drawn, or else drawn from its trajectories."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

from ubmd.analysis.comparison import RunResult
from ubmd.analysis.page.markup import Markup, png
from ubmd.analysis.page.run import RunPage
from ubmd.analysis.paper.source import Source
from ubmd.analysis.report import CELLS, explorations, explored_figures
from ubmd.runs.store import RoundStore

__all__ = ["explored_pictures"]

_OTHERS = ("calibration", "learning_curves", "error_by_")


def explored_pictures(run: RunPage) -> Iterator[tuple[Markup, str]]:
    """Pictures with their captions.

    Raises:
        InputError: of a run whose figures are still to come a trajectory or a variable cannot be read.
    """
    folder = run.path / "figures"
    if (folder / "learning_curves.png").is_file():
        for file in sorted(folder.glob("*.png")):
            if not file.name.startswith(_OTHERS):
                yield png(file, _caption(file.stem)), _caption(file.stem)
        return
    store, n = RoundStore(run.path), len(run.rows)
    explored = explorations(store, n - 1)
    if not explored or "" not in explored[0][1]:  # of several systems they are drawn at the end alone
        return
    source = Source(RunResult(run.title, run.config, run.rows, run.path), run.path)
    found = [(index, by_system[""]) for index, by_system in explored]
    variables = source.variables(found[0][1])
    for name, figure in explored_figures(variables, source.states, found, store.structures(n), source.dt):
        buffer = BytesIO()
        figure.savefig(buffer, dpi=150, format="png")
        yield png(buffer.getvalue(), _caption(name)), _caption(name)


def _caption(name: str) -> str:
    """What a figure of :func:`~ubmd.analysis.report.explored_figures` shows, by its name."""
    if name.endswith(CELLS):
        of = name.removesuffix(CELLS).strip("_")
        return f"How often each length and angle of the cell{' of ' if of else ''}{of} was met."
    if name.endswith("_series"):
        return f"{name.removesuffix('_series')} of the walkers in time."
    first, _, second = name.partition("_")
    if second:
        return f"What was explored of {first} and {second}, coloured by the round that first came there."
    return f"How often each {name} was met."
