"""A comparison as a table: on the terminal, as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich import box
from rich.table import Table

from ubmd.analysis.comparison import (
    Comparison,
    Metric,
    Setting,
    final_metrics,
    known_metrics,
    mean_and_deviation,
)

__all__ = ["Cell", "as_csv", "as_latex", "as_markdown", "cell_text", "latex_line", "terminal_tables"]

Cell = tuple[float, float | None]
"""Mean and sample standard deviation; the latter is None for a single run."""

_CALIBRATION, _VALIDATION = "test_coverage_", "valid_"
_LATEX = {"\\": r"\textbackslash{}", **{c: f"\\{c}" for c in "&%$#_{}"}, "~": r"\textasciitilde{}"} | {
    "^": r"\textasciicircum{}", "Å": r"\AA{}", "α": r"$\alpha$", "–": "--", "±": r"$\pm$",
    "τ": r"$\tau$", "×": r"$\times$", "\N{MINUS SIGN}": "$-$",
}  # fmt: skip


def terminal_tables(comparison: Comparison) -> list[Table]:
    """Accuracy and exploration, then, if known, the share of held-out errors that their uncertainty covers."""
    metrics = _metrics(comparison)
    parts = [
        [m for m in metrics if not m.name.startswith(_CALIBRATION)],
        [m for m in metrics if m.name.startswith(_CALIBRATION)],
    ]
    tables = []
    for part in filter(None, parts):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for column in comparison.columns or ("setting",):
            table.add_column(f"\n{column}", overflow="fold")
        table.add_column("\nruns", justify="right", no_wrap=True)
        for metric in part:
            table.add_column(f"{metric.title}\n{metric.unit}", justify="right", no_wrap=True)
        for setting in comparison.settings:
            cells = [cell_text(metric, _cell(setting, metric, comparison.steps)) for metric in part]
            table.add_row(*(setting.values or (setting.label,)), str(len(setting.runs)), *cells)
        tables.append(table)
    return tables


def as_csv(comparison: Comparison) -> str:
    """A line for each setting: its values, the number of runs, mean and deviation of each metric in full precision."""
    metrics = _metrics(comparison)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    statistics = [f"{metric.name}_{kind}" for metric in metrics for kind in ("mean", "std")]
    writer.writerow([*comparison.columns, "runs", *statistics])
    for setting in comparison.settings:
        cells = [_cell(setting, metric, comparison.steps) or (None, None) for metric in metrics]
        numbers = ["" if x is None else repr(x) for cell in cells for x in cell]
        writer.writerow([*setting.values, len(setting.runs), *numbers])
    return out.getvalue()


def as_markdown(comparison: Comparison) -> str:
    """A table with notes: what else differs, and which runs each line stands for."""
    metrics = _metrics(comparison)
    lines = [_headings(comparison, metrics), ["---"] * len(comparison.columns) + ["---:"] * (1 + len(metrics))]
    lines += [_row(comparison, setting, metrics) for setting in comparison.settings]
    text = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]
    text += ["", "Mean ± sample standard deviation over runs with different seeds, after the last round."]
    if comparison.untested:
        text += ["", f"{comparison.untested} runs have no test set: validation errors are those of labelled structures"]
        text[-1] += " that each fit left out but was stopped by."
    if comparison.steps is not None:
        text += ["", f"Equal steps: {comparison.steps} of all walkers together, which every run has made."]
    if comparison.along:
        text += ["", f"Also different, along with these: {', '.join(f'`{key}`' for key in comparison.along)}."]
    text += ["", "Runs:", ""]
    text += [f"- {setting.label}: {', '.join(run.name for run in setting.runs)}" for setting in comparison.settings]
    return "\n".join(text) + "\n"


def as_latex(comparison: Comparison) -> str:
    """A ``tabular`` for the package booktabs."""
    metrics = _metrics(comparison)
    lines = [
        f"\\begin{{tabular}}{{{'l' * len(comparison.columns)}{'r' * (1 + len(metrics))}}}",
        r"\toprule",
        latex_line(_headings(comparison, metrics)),
        r"\midrule",
        *(latex_line(_row(comparison, setting, metrics)) for setting in comparison.settings),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _metrics(comparison: Comparison) -> list[Metric]:
    """Those that any run has; those on validation structures only where a run has no test set."""
    runs = [run.rounds for setting in comparison.settings for run in setting.runs]
    found = [final_metrics(rounds, comparison.steps) for rounds in runs]
    known = known_metrics(runs)
    wanted = [metric for metric in known if comparison.untested or not metric.name.startswith(_VALIDATION)]
    return [metric for metric in wanted if any(metric.name in values for values in found)]


def _cell(setting: Setting, metric: Metric, steps: int | None) -> Cell | None:
    found = [final_metrics(run.rounds, steps) for run in setting.runs]
    values = [metrics[metric.name] for metrics in found if metric.name in metrics]
    return mean_and_deviation(values) if values else None


def cell_text(metric: Metric, cell: Cell | None) -> str:
    """``0.70 ± 0.14``; a dash for nothing, and no deviation where there is a single run."""
    if cell is None:
        return "–"
    mean, deviation = cell
    text = f"{mean:.{metric.decimals}f}"
    return text if deviation is None else f"{text} ± {deviation:.{metric.decimals}f}"


def _headings(comparison: Comparison, metrics: Sequence[Metric]) -> list[str]:
    titles = [f"{metric.title} ({metric.unit})" if metric.unit else metric.title for metric in metrics]
    return [*comparison.columns, "runs", *titles]


def _row(comparison: Comparison, setting: Setting, metrics: Sequence[Metric]) -> list[str]:
    cells = [cell_text(metric, _cell(setting, metric, comparison.steps)) for metric in metrics]
    return [*setting.values, str(len(setting.runs)), *cells]


def latex_line(cells: Sequence[str]) -> str:
    """A row of a ``tabular``, with what LaTeX would misread escaped."""
    return " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in cells) + r" \\"
