"""Tables 1 and 2: what each setting has reached at its end, as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from ubmd.analysis.comparison import Metric, final_metrics, known_metrics, mean_and_deviation
from ubmd.analysis.comparison_tables import Cell, cell_text, latex_line
from ubmd.analysis.paper.drawn import Drawn, NotDrawnError, described
from ubmd.analysis.paper.source import Setting

__all__ = ["draw_table1", "draw_table2"]

_ERRORS = ("energy_rmse_mev_per_atom", "force_rmse_ev_per_ang")
_TIMES = ("act_position_ps", "act_uncertainty_ps", "n_structures")
_HIGHER_IS_BETTER = ("coverage",)
_NOT_RANKED = ("n_structures",)

_Row = tuple[Setting, Mapping[str, Cell]]


def draw_table1(settings: Sequence[Setting]) -> Drawn:
    """Coverage, errors and auto-correlation times of each setting (Table 1).

    Raises:
        NotDrawnError: no run has any of them.
    """
    what = (
        "Table 1. Coverage of the space of collective variables, errors on the test set, and auto-correlation times of "
        "positions and of atomic uncertainties; after the last round, over trajectories of all rounds."
    )
    return _draw({None: settings}, ("coverage", *_ERRORS, *_TIMES), what)


def draw_table2(temperatures: Mapping[float | None, Sequence[Setting]]) -> Drawn:
    """Errors of energy, forces and stress, and auto-correlation times, of each setting by temperature (Table 2).

    Raises:
        NotDrawnError: no run has any of them.
    """
    what = (
        "Table 2. Errors of energy, forces and stress on the test set, and auto-correlation times of positions and of "
        "atomic uncertainties; after the last round, over trajectories of all rounds."
    )
    return _draw(temperatures, (*_ERRORS, "stress_rmse_mpa", *_TIMES), what)


def _draw(groups: Mapping[float | None, Sequence[Setting]], names: Sequence[str], what: str) -> Drawn:
    settings = [setting for group in groups.values() for setting in group]
    known = {metric.name: metric for metric in known_metrics([])}
    cells = {setting.name: _cells(setting, names) for setting in settings}
    metrics = [known[name] for name in names if any(name in own for own in cells.values())]
    missing = [f"No run has {known[name].title} ({name})." for name in names if known[name] not in metrics]
    if not [metric for metric in metrics if metric.name not in _NOT_RANKED]:
        raise NotDrawnError(" ".join(missing))
    caption = described(settings, f"{what} Bold: the best mean of its group.", missing)
    blocks = []
    for temperature, group in groups.items():
        title = "other temperatures" if temperature is None else f"T = {temperature:g} K"
        blocks.append((title if len(groups) > 1 else "", [(s, cells[s.name]) for s in group]))
    texts = {
        "csv": _csv(blocks, metrics),
        "md": _markdown(blocks, metrics),
        "tex": _latex(blocks, metrics),
    }
    return Drawn(caption, texts=texts, missing=tuple(missing))


def _cells(setting: Setting, names: Sequence[str]) -> dict[str, Cell]:
    found = [final_metrics(rounds) for rounds in setting.rounds]
    values = {name: [metrics[name] for metrics in found if name in metrics] for name in names}
    return {name: mean_and_deviation(v) for name, v in values.items() if v}


_Blocks = Sequence[tuple[str, Sequence[_Row]]]


def _csv(blocks: _Blocks, metrics: Sequence[Metric]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    statistics = [f"{metric.name}_{kind}" for metric in metrics for kind in ("mean", "std")]
    writer.writerow(["experiment", "runs", *statistics])
    for _, rows in blocks:
        for setting, cells in rows:
            found = [cells.get(metric.name, (None, None)) for metric in metrics]
            numbers = ["" if x is None else repr(x) for cell in found for x in cell]
            writer.writerow([setting.name, len(setting.sources), *numbers])
    return out.getvalue()


def _markdown(blocks: _Blocks, metrics: Sequence[Metric]) -> str:
    lines = [_headings(metrics), ["---", *["---:"] * (1 + len(metrics))]]
    for title, rows in blocks:
        if title:
            lines.append([f"*{title}*", *[""] * (1 + len(metrics))])
        best = _best(rows, metrics)
        for setting, cells in rows:
            found = [(metric, cell_text(metric, cells.get(metric.name))) for metric in metrics]
            shown = [f"**{text}**" if setting.name in best[metric.name] else text for metric, text in found]
            lines.append([setting.name, str(len(setting.sources)), *shown])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex(blocks: _Blocks, metrics: Sequence[Metric]) -> str:
    lines = [f"\\begin{{tabular}}{{l{'r' * (1 + len(metrics))}}}", r"\toprule", latex_line(_headings(metrics))]
    for title, rows in blocks:
        lines.append(r"\midrule")
        if title:
            lines += [f"\\multicolumn{{{2 + len(metrics)}}}{{l}}{{\\emph{{{title}}}}} \\\\"]
        best = _best(rows, metrics)
        for setting, cells in rows:
            found = [(metric, cell_text(metric, cells.get(metric.name))) for metric in metrics]
            plain = latex_line([setting.name, str(len(setting.sources)), *(text for _, text in found)])
            first, runs, *escaped = plain.removesuffix(r" \\").split(" & ")
            marked = [
                f"\\textbf{{{text}}}" if setting.name in best[metric.name] else text
                for (metric, _), text in zip(found, escaped, strict=True)
            ]
            lines.append(" & ".join([first, runs, *marked]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _headings(metrics: Sequence[Metric]) -> list[str]:
    return ["Experiment", "Runs", *(f"{m.title} ({m.unit})" if m.unit else m.title for m in metrics)]


def _best(rows: Sequence[_Row], metrics: Sequence[Metric]) -> dict[str, set[str]]:
    """Names of the settings whose mean, as it is shown, is the best; none where there is but one to compare."""
    out: dict[str, set[str]] = {}
    for metric in metrics:
        means = {s.name: round(cells[metric.name][0], metric.decimals) for s, cells in rows if metric.name in cells}
        best = (
            max(means.values(), default=0.0) if metric.name in _HIGHER_IS_BETTER else min(means.values(), default=0.0)
        )
        ranked = len(means) > 1 and metric.name not in _NOT_RANKED
        out[metric.name] = {name for name, mean in means.items() if ranked and mean == best}
    return out
