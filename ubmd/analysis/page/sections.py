"""The sections of the page. Each gives its content; what a run does not have is said in a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from ubmd.analysis.comparison import is_tested
from ubmd.analysis.curves import exploration_curves, learning_panels
from ubmd.analysis.looks import experiment_name, looks_of, method_name
from ubmd.analysis.numbers import read_numbers
from ubmd.analysis.page.explored import explored_pictures
from ubmd.analysis.page.markup import (
    Markup,
    figure_of,
    joined,
    pairs,
    paragraph,
    png,
    svg,
    table,
    table_of,
    tag,
)
from ubmd.analysis.page.plots import acquired_coverage
from ubmd.analysis.page.rejected import rejected_structures
from ubmd.analysis.page.run import RunPage
from ubmd.analysis.page.views import HINT, colour_bar, structure_view
from ubmd.analysis.page.worst import WorstStructures, atomic_errors
from ubmd.analysis.reliability import correlations
from ubmd.analysis.report import shown_rows
from ubmd.analysis.tables import duration, rounds_table, significant, stage_times_table, systems_table
from ubmd.dynamics.stopping import StopReason
from ubmd.dynamics.trajectory import read_trajectories
from ubmd.runs.metrics import STAGES
from ubmd.runs.store import INITIAL

__all__ = ["SECTIONS", "summary"]

_MOST_REJECTED = 200
_SETTINGS = {
    "System": "system.structure",
    "Reference": "reference",
    "Model": "model",
    "Calibration": "calibration.evidence",
    "Bias": "bias",
    "Dynamics": "dynamics",
    "Integrator": "dynamics.integrator",
    "Selection": "selection",
}
"""Parts that a class or function makes."""
_NUMBERS = {
    "Seed": ("seed", ""),
    "Structures at the start": ("system.n_initial", ""),
    "Structures at the end": ("learning.max_structures", ""),
    "Rounds, at most": ("learning.max_rounds", ""),
    "Structures acquired in a round": ("learning.batch_size", ""),
    "Walkers": ("dynamics.n_walkers", ""),
    "Steps of a walker, at most": ("dynamics.stopping.max_steps", ""),
    "Time step": ("dynamics.integrator.dt", "fs"),
    "Temperature": ("dynamics.integrator.temperature", "K"),
    "Pressure": ("dynamics.integrator.pressure", "MPa"),
    "Biasing strength τ": ("bias.tau", ""),
    "τ of the stress": ("bias.tau_stress", ""),
    "Uncertainty that stops a walker": ("dynamics.stopping.uncertainty_threshold", "eV/Å"),
    "Force that rejects a label": ("labelling.max_force", "eV/Å"),
    "Share of errors beyond their uncertainty, α": ("calibration.atomic.alpha", ""),
}


def summary(run: RunPage) -> Markup:
    """What the run came to, in a few numbers, and whether it is at its end."""
    facts: list[tuple[str, object]] = [("Rounds finished", str(len(run.rows)))]
    if run.rows:
        last, kind = run.rows[-1], "test" if is_tested(run.rows) else "validation"
        facts.append(("Labelled structures", str(run.n_structures)))
        shown = shown_rows(run.rows)[-1]
        for name, unit in (("force_rmse_ev_per_ang", "eV/Å"), ("energy_rmse_mev_per_atom", "meV/atom")):
            value = shown.get(name)
            if value is not None:
                what = name.split("_")[0].capitalize()
                number = joined([significant(value), tag("span", f" {unit}", class_="unit")], "")
                facts.append((f"{what} RMSE, {kind}", number))
        if last.get("coverage") is not None:
            facts.append(("Coverage", f"{last['coverage']:.2f}"))
        facts.append(("Wall time", duration(sum(row.get(f"time_{s}_s") or 0 for row in run.rows for s in STAGES))))
    parts = [paragraph(tag("strong", _state(run)), " ", run.unfinished() or "")]
    return joined([*parts, tag("div", pairs(facts), class_="facts")])


def _state(run: RunPage) -> str:
    if not run.finished:
        return "Not finished: the same command continues the run."
    if run.rows[-1].get("n_selected") is None:
        return "Finished."
    return "Ended early: the last round acquired no structure."


def _settings(run: RunPage) -> Iterator[Markup]:
    about: list[tuple[str, object]] = [("Experiment", experiment_name(run.config)), ("Folder", str(run.path))]
    if run.overrides:
        about.append(("Command", tag("code", " ".join(["ubmd learn", *run.overrides]))))
    yield pairs(about, "wide")
    rows: list[tuple[str, object]] = [("Uncertainty", method_name(run.config))]
    rows += [(name, part) for name, key in _SETTINGS.items() if (part := _part(run.value(key)))]
    for name, (key, unit) in _NUMBERS.items():
        value = run.value(key)
        if value is not None and not isinstance(value, Mapping):
            rows.append((name, f"{_number(value)} {unit}".strip()))
    yield pairs(rows)
    text = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
    block = tag("pre", text, tabindex="0", role="region", aria_label="The whole configuration")
    yield tag("details", tag("summary", "The whole configuration"), block)


def _number(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_number, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _part(node: Any) -> str | None:
    """The class or function of a part, or the text that is in its place."""
    if isinstance(node, Mapping):
        return str(node.get("_target_", "")).rpartition(".")[2] or None
    return node if isinstance(node, str) else None


def _learning(run: RunPage) -> Iterator[Markup]:
    if not run.rows:
        yield _missing("No round is finished, so that there are no errors to show.")
        return
    if not is_tested(run.rows):
        yield _missing("There is no test set (data.test): errors are those of the validation structures.")
    drawn = [
        svg(figure, f"{label} against labelled structures", f"learning{number}")
        for number, (label, figure) in enumerate(learning_panels(run.rows))
    ]
    if drawn:
        caption = "Errors and coverage against the number of labelled structures, a point for each round."
        yield figure_of(tag("div", *drawn, class_="row"), caption)
    yield table_of(rounds_table(shown_rows(run.rows)), "Rounds: data, errors, exploration and time")
    counted = "n_structures_"
    if systems := [column.removeprefix(counted) for column in run.rows[-1] if column.startswith(counted)]:
        yield table_of(systems_table(run.rows[-1], systems), "Systems: structures and errors of the last round")


def _exploration(run: RunPage) -> Iterator[Markup]:
    files = sorted(run.path.glob("rounds/*/trajectory.h5"))
    if not files:
        yield _missing("No round has explored.")
        return
    name = experiment_name(run.config)
    figures: list[Markup] = []
    figure = exploration_curves({name: [run.rows]}, looks_of({name: run.config})) if run.rows else None
    if figure is not None:
        caption = "What was explored so far, against the steps of all walkers together."
        figures.append(figure_of(svg(figure, caption, "explored"), caption))
    figures += [figure_of(picture, caption) for picture, caption in explored_pictures(run)]
    yield tag("div", *figures, class_="row")
    header = ["Round", "Walkers", "Steps", "Frames", "Highest uncertainty (eV/Å)"]
    rows: list[list[Any]] = []
    ends: list[Counter[int]] = []
    for file in files:
        for system, e in read_trajectories(file).items():
            ends.append(Counter(e.reasons.tolist()))
            index = int(file.parent.name)
            known = [len(e.walkers), e.md_steps, e.n_frames, f"{e.max_uncertainty.max():.3g}"]
            rows.append([f"{index}, {system}" if system else index, *known])
    reasons = sorted({reason for found in ends for reason in found})
    header += [_capital(StopReason(reason).description) for reason in reasons]
    rows = [row + [found[reason] for reason in reasons] for row, found in zip(rows, ends, strict=True)]
    yield table("Walkers of each round, and how many of them ended why", header, rows)


def _calibration(run: RunPage) -> Iterator[Markup]:
    known = [row for row in run.rows if row.get("conformal_scale_atom") is not None]
    if not known:
        yield _missing("No round is calibrated.")
        return
    alpha = run.alpha
    target = "" if alpha is None else f" The dashed line is the share that they promise, {1 - alpha:g}."
    figures, figure = [], acquired_coverage(run.rows, alpha)
    if figure is None:
        yield _missing("No round has compared new labels with what its potential had said about them beforehand.")
    else:
        caption = f"Of the structures labelled in a round, the share of errors within their uncertainties.{target}"
        figures.append(figure_of(svg(figure, caption, "acquired"), caption))
    curve = run.path / "figures" / "calibration_curve.png"
    if curve.is_file():
        caption = "On the test set, the share of errors within the bound of each confidence, which should be on the "
        caption += "diagonal; in brackets the area between the two."
        figures.append(figure_of(png(curve, caption), caption))
    yield tag("div", *figures, class_="row")
    columns = {
        "Factor, atoms": "conformal_scale_atom",
        "Factor, structures": "conformal_scale_total",
        "New labels covered, atoms": "acquired_coverage_atom",
        "New labels covered, structures": "acquired_coverage_total",
    }
    rows = [[row.get("round"), *(_cell(row.get(c), significant) for c in columns.values())] for row in known]
    yield table("Calibration of each round", ["Round", *columns], rows)


def _errors(run: RunPage) -> Iterator[Markup]:
    figures, file = [], run.path / "figures" / "calibration.png"
    if file.is_file():
        caption = "The largest force error of each test structure against its largest uncertainty, last potential."
        figures.append(figure_of(png(file, caption), joined([caption, " ", _correlated(run)], "")))
    elif not is_tested(run.rows):
        yield _missing("There is no test set (data.test) whose errors could be held against uncertainties.")
    else:
        yield _missing("It is drawn when the run is at its end.")
    for picture in sorted((run.path / "figures").glob("error_by_*.png")):
        caption = f"Errors on the test set along {picture.stem.removeprefix('error_by_')}, for several rounds."
        figures.append(figure_of(png(picture, caption), caption))
    yield tag("div", *figures, class_="row")


def _correlated(run: RunPage) -> str:
    """How error and uncertainty go together, in words."""
    names = ("uncertainty_ev_per_ang", "error_ev_per_ang")
    columns = read_numbers(run.path / "figures" / "calibration.csv", names)
    pearson, spearman = correlations(*(columns[name] for name in names))
    if pearson is None or spearman is None:
        return ""
    return f"Pearson correlation {pearson:.2f}, Spearman {spearman:.2f}."


def _worst(run: RunPage) -> Iterator[Markup]:
    worst = WorstStructures.of_run(run.path, run.allow)
    largest = max(float(atomic_errors(atoms).max()) for atoms in worst.structures)
    told = f"The {len(worst.structures)} structures with the largest force errors {worst.told}."
    yield paragraph(f"{told} Structures and atoms are counted from 0.")
    yield paragraph(HINT)
    yield tag("noscript", paragraph("The views need JavaScript; the tables of their atoms do not."))
    yield colour_bar(largest)
    views = [structure_view(atoms, f"Structure {atoms.info['number']}", largest) for atoms in worst.structures]
    yield tag("div", *views, class_="views")


def _cost(run: RunPage) -> Iterator[Markup]:
    if not run.rows:
        yield _missing("No round is finished.")
        return
    totals = {stage: sum(row.get(f"time_{stage}_s") or 0.0 for row in run.rows) for stage in STAGES}
    whole = sum(totals.values()) or 1.0
    parts = [
        tag("span", class_=f"stage {stage}", style=f"width:{100 * time / whole:.2f}%") for stage, time in totals.items()
    ]
    words = [
        tag("li", tag("span", class_=f"stage {stage}", aria_hidden="true"), f" {stage} {duration(time)}")
        for stage, time in totals.items()
    ]
    yield tag("div", *parts, class_="stack", aria_hidden="true")
    yield tag("ul", *words, class_="legend")
    yield table_of(stage_times_table(run.rows), "Wall time of each stage of each round")


def _rejected(run: RunPage) -> Iterator[Markup]:
    found = rejected_structures(run.path, run.config)
    if not found:
        yield paragraph("Nothing was rejected.")
        return
    rows = [("start" if r.round == INITIAL else r.round, r.origin, r.reason) for r in found[:_MOST_REJECTED]]
    yield table(f"{len(found)} structures without a usable label", ("Round", "Frame", "Reason"), rows, numeric=False)
    if len(found) > _MOST_REJECTED:
        yield paragraph(f"The first {_MOST_REJECTED} are shown.")


def _versions(run: RunPage) -> Iterator[Markup]:
    if not run.provenance:
        yield _missing("provenance.json is missing or damaged.")
        return
    told = {key: value for key, value in run.provenance.items() if key != "changes" and value is not None}
    yield pairs(told.items())
    changes = run.provenance.get("changes")
    for change in changes if isinstance(changes, list) else []:
        if isinstance(change, Mapping):
            text = yaml.safe_dump(dict(change), sort_keys=False, allow_unicode=True)
            yield tag("details", tag("summary", f"Continued {change.get('time', '')}"), tag("pre", text, tabindex="0"))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _cell(value: float | None, text: Callable[[float], str]) -> str:
    return "–" if value is None else text(value)


def _missing(sentence: str) -> Markup:
    return tag("p", sentence, class_="missing")


SECTIONS: dict[str, Callable[[RunPage], Iterator[Markup]]] = {
    "Settings": _settings,
    "Learning curves": _learning,
    "Exploration": _exploration,
    "Calibration": _calibration,
    "Error against uncertainty": _errors,
    "Worst structures": _worst,
    "Cost": _cost,
    "Rejected": _rejected,
    "Versions": _versions,
}
"""The sections in their order, by their headings."""
