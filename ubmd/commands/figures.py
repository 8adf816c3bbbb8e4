"""``ubmd figures``: the figures and tables of the paper, drawn from run folders or from Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from ubmd.analysis.figures import save_figure
from ubmd.analysis.looks import method_name
from ubmd.analysis.numbers import read_numbers
from ubmd.analysis.paper.crystals import draw_fig5, draw_fig6, draw_fig7
from ubmd.analysis.paper.drawn import Drawn, NotDrawnError
from ubmd.analysis.paper.exploration import draw_fig3, draw_fig4
from ubmd.analysis.paper.source import Setting, Source, settings_of
from ubmd.analysis.paper.tables import draw_table1, draw_table2
from ubmd.analysis.paper.uncertainties import CalibratedFit, draw_fig2
from ubmd.arguments import Parser
from ubmd.commands.folders import common_parent, read_folders, run_folders
from ubmd.commands.wandb_runs import add_source, check_source, download_runs, wandb_api
from ubmd.errors import InputError
from ubmd.files import write_text
from ubmd.runs.continuation import read_config
from ubmd.runs.versions import upgraded

__all__ = ["NAMES", "figures"]

NAMES = ("fig2", "fig3", "fig4", "fig5", "fig6", "fig7", "table1", "table2")
_DPI = 220


@dataclass(frozen=True)
class _Runs:
    """What the folders hold."""

    fits: list[CalibratedFit]
    unread: list[str]
    """Sentences about fits that could not be read."""
    molecules: list[Source]
    crystals: list[Source]


def _parser() -> Parser:
    parser = Parser(
        prog="ubmd figures",
        description="Figures and tables of the paper from finished runs, with a text that says from which.",
        epilog="examples: ubmd figures fig3 table1 runs/ala2_demo   ubmd figures all --wandb me/ubmd",
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="+", metavar="fig2 ... fig7 table1 table2 | all", help="what to draw, then")
    add_source(parser)
    parser.add_argument("--output", metavar="DIR", type=Path, help="default: paper, beside the runs")
    return parser


def figures(argv: Sequence[str]) -> int:
    """Runs ``ubmd figures``; returns the exit code.

    Raises:
        InputError: for arguments that name nothing to draw or no run, and if something that was asked for by its name
            cannot be drawn, after the rest is.
    """
    options = _parser().parse_args(list(argv))
    names, words = _split(options.words)
    check_source(words, options.wandb, options.group)
    console = Console()
    if options.wandb:
        output = options.output or Path("paper")
        folders, without = download_runs(wandb_api(), options.wandb, options.group, output / "wandb")
        for name in without:
            told = "has logged no artifact of its folder: it is unfinished, or of an earlier version"
            console.print(f"skipped: {name}: {told}", highlight=False, soft_wrap=True, markup=False)
    else:
        output, folders = options.output or common_parent(words) / "paper", [Path(word) for word in words]
    runs = _read(folders, console)
    undrawn: dict[str, str] = {}
    for name, draw in _figures(runs).items():
        if name not in names and names != ("all",):
            continue
        try:
            written = _write(draw(), output / name)
        except NotDrawnError as error:
            undrawn[name] = str(error)
            continue
        console.print(f"{name}: {written}", highlight=False, soft_wrap=True, markup=False)
    for name, reason in undrawn.items():
        console.print(f"{name} is not drawn: {reason}", highlight=False, soft_wrap=True, markup=False)
    if undrawn and (names != ("all",) or len(undrawn) == len(NAMES)):
        raise InputError(f"not drawn: {', '.join(undrawn)}; give runs that have what the sentences above name")
    return 0


def _split(words: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Names of figures, which come first, and folders."""
    known = (*NAMES, "all")
    names = [word for word in words if word in known]
    folders = [word for word in words if word not in known]
    if not names:
        raise InputError(f"name what to draw before the run folders: {', '.join(NAMES)}, or all")
    return (("all",) if "all" in names else tuple(names)), folders


def _read(folders: Sequence[Path], console: Console) -> _Runs:
    found, fits, unread = read_folders(folders), [], []
    fitted = {folder for folder in run_folders(folders) if (folder / "metrics.json").is_file()}
    for folder in sorted(fitted):
        try:
            fits.append(_fit(folder))
        except InputError as error:
            unread.append(f"{error}.")
    names = {folder.name for folder in fitted}
    for name, reason in found.skipped:
        if name not in names:
            console.print(f"skipped: {name}: {reason}", highlight=False, soft_wrap=True, markup=False)
    sources = [Source(run, run.folder) for run in found.runs if run.folder is not None]
    crystals = [source for source in sources if source.is_crystal]
    return _Runs(fits, unread, [s for s in sources if not s.is_crystal], crystals)


def _fit(folder: Path) -> CalibratedFit:
    """A folder of ``ubmd train``.

    Raises:
        InputError: something in it is missing or damaged.
    """
    config = upgraded(read_config(folder / "config.yaml"))
    columns = read_numbers(folder / "figures" / "calibration.csv", ("error_ev_per_ang", "uncertainty_ev_per_ang"))
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        sizes = int(metrics["n_train"]), int(metrics["n_valid"])
        alpha = float(config["calibration"]["atomic"]["alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} is no finished run of `ubmd train` ({error!r})") from error
    return CalibratedFit(folder, method_name(config), *sizes, config.get("seed"), alpha, columns)


def _figures(runs: _Runs) -> dict[str, Callable[[], Drawn]]:
    """How each figure is drawn, by its name."""
    crystals = partial(_by_temperature, runs.crystals)
    return {
        "fig2": lambda: draw_fig2(runs.fits, runs.unread),
        "fig3": lambda: draw_fig3(_settings(runs.molecules, "molecule")),
        "fig4": lambda: draw_fig4(_settings(runs.molecules, "molecule")),
        "fig5": lambda: draw_fig5(crystals()),
        "fig6": lambda: draw_fig6(next(iter(crystals().values()))),
        "fig7": lambda: draw_fig7(list(crystals().values())[-1]),
        "table1": lambda: draw_table1(_settings(runs.molecules, "molecule")),
        "table2": lambda: draw_table2(crystals()),
    }


def _settings(sources: Sequence[Source], kind: str) -> list[Setting]:
    """Settings of runs, which must be of one system.

    Raises:
        NotDrawnError: there is no run, or they are of several systems.
    """
    if not sources:
        raise NotDrawnError(f"there is no finished run of `ubmd learn` with a {kind} among the folders.")
    systems = {json.dumps(s.result.config.get("system", {}).get("structure"), default=str): s for s in sources}
    if len(systems) > 1:
        first, second, *_ = systems.values()
        raise NotDrawnError(f"{first.folder} and {second.folder} are of different systems; give runs of one of them.")
    return settings_of(sources)


def _by_temperature(sources: Sequence[Source]) -> dict[float | None, list[Setting]]:
    """Settings of crystals by their temperature, K, the highest first."""
    _settings(sources, "crystal")
    known = sorted({s.temperature for s in sources}, key=lambda t: -1.0 if t is None else t, reverse=True)
    return {t: settings_of([s for s in sources if s.temperature == t]) for t in known}


def _write(drawn: Drawn, stem: Path) -> str:
    """Writes a figure or a table with its caption; returns what was written, in words."""
    endings = []
    if drawn.figure is not None:
        for ending in ("png", "pdf"):
            save_figure(drawn.figure, stem.with_suffix(f".{ending}"), dpi=_DPI)
            drawn.figure.set_layout_engine("none")  # it is laid out now; once more would take as long
            endings.append(ending)
    for ending, text in drawn.texts.items():
        write_text(stem.with_suffix(f".{ending}"), text)
        endings.append(ending)
    write_text(stem.with_suffix(".txt"), drawn.caption)
    left_out = f"; without: {' '.join(drawn.missing)}" if drawn.missing else ""
    return f"{stem}.{{{','.join([*endings, 'txt'])}}}{left_out}"
