"""``ubmd compare``: runs of active learning side by side, from their folders or from Weights & Biases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ubmd.analysis.comparison import Comparison, compare_runs
from ubmd.analysis.comparison_tables import as_csv, as_latex, as_markdown, terminal_tables
from ubmd.analysis.curves import compared_curves, exploration_curves
from ubmd.analysis.figures import save_figure
from ubmd.analysis.looks import looks_of
from ubmd.arguments import Parser
from ubmd.commands.folders import common_parent, read_folders
from ubmd.commands.wandb_runs import add_source, check_source, read_wandb, wandb_api
from ubmd.errors import InputError
from ubmd.files import replaced

__all__ = ["compare"]


def _parser() -> Parser:
    parser = Parser(
        prog="ubmd compare",
        description="Mean and deviation over seeds for each setting of finished runs: tables and learning curves.",
        epilog="examples: ubmd compare runs/ala2_demo/*   ubmd compare --wandb me/ubmd --group ala2_demo",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run folder, or a folder of run folders")
    add_source(parser)
    parser.add_argument("--output", metavar="DIR", type=Path, help="default: comparison, beside the runs")
    return parser


def compare(argv: Sequence[str]) -> int:
    """Runs ``ubmd compare``; returns the exit code.

    Raises:
        InputError: for arguments that name no finished run.
    """
    options = _parser().parse_args(list(argv))
    check_source(options.runs, options.wandb, options.group)
    if options.wandb:
        found = read_wandb(wandb_api(), options.wandb, options.group)
        folder = options.output or Path("comparison")
    else:
        found = read_folders([Path(run) for run in options.runs])
        folder = options.output or common_parent(options.runs) / "comparison"
    console = Console()
    for name, reason in found.skipped:
        console.print(f"skipped: {name}: {reason}", highlight=False, soft_wrap=True, markup=False)
    if not found.runs:
        raise InputError("there is no finished run to compare; give folders that `ubmd learn` has finished")
    comparison = compare_runs(found.runs)
    _report(comparison, console)
    console.print(f"{folder}: {', '.join(_write(comparison, folder))}", highlight=False, soft_wrap=True, markup=False)
    return 0


def _report(comparison: Comparison, console: Console) -> None:
    for name in comparison.repeated:
        console.print(f"skipped: {name}: another run has the same setting and seed", highlight=False, markup=False)
    # a file or a pipe takes lines of any length
    wide = console if console.is_terminal else Console(width=240)
    for table in terminal_tables(comparison):
        wide.print(table)
        wide.print()
    if comparison.untested:
        console.print(
            f"{comparison.untested} runs have no test set (data.test): validation errors are those of labelled "
            "structures that each fit left out but was stopped by",
            highlight=False,
            soft_wrap=True,
        )
    if comparison.steps is not None:
        console.print(f"equal steps: {comparison.steps} of all walkers together", highlight=False)
    if comparison.along:
        console.print(f"also different, along with these: {', '.join(comparison.along)}", highlight=False)


def _write(comparison: Comparison, folder: Path) -> list[str]:
    """Writes tables and figures; returns the names of the files."""
    texts = {"table.csv": as_csv(comparison), "table.md": as_markdown(comparison), "table.tex": as_latex(comparison)}
    for name, text in texts.items():
        with replaced(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    curves = {setting.label: [run.rounds for run in setting.runs] for setting in comparison.settings}
    looks = looks_of({setting.label: setting.runs[0].config for setting in comparison.settings})
    figures = {
        "learning_curves.png": compared_curves(curves, looks),
        "exploration.png": exploration_curves(curves, looks),
    }
    figures = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    return [*texts, *figures]
