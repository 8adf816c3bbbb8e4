"""Runs side by side: what their settings differ in, and what each setting reaches, as mean and deviation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubmd.observables.columns import range_columns
from ubmd.runs.continuation import MAY_DIFFER

__all__ = [
    "Comparison",
    "Metric",
    "RunResult",
    "Setting",
    "compare_runs",
    "explored_against_steps",
    "explored_columns",
    "final_metrics",
    "is_finished",
    "is_tested",
    "known_metrics",
    "mean_and_deviation",
]

Row = Mapping[str, float | int | None]

SAME_FOR_ALL = ("seed", "name", "hydra", "provenance", *MAY_DIFFER)
"""Parts of a configuration that make no setting of their own."""


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    name: str
    """What it is called in messages."""
    config: Mapping[str, Any]
    """Its resolved configuration."""
    rounds: Sequence[Row]
    """Rows of ``metrics.csv``, at least one."""
    folder: Path | None = None
    """Its folder; None if it comes from elsewhere."""

    @property
    def seed(self) -> Any:
        """The root seed."""
        return self.config.get("seed")


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but their seeds."""

    values: tuple[str, ...]
    """Of the comparison's columns."""
    runs: tuple[RunResult, ...]
    label: str
    """The values in one line, for a legend."""


@dataclass(frozen=True)
class Comparison:
    """Settings with what tells them apart."""

    columns: tuple[str, ...]
    """Configuration keys whose values tell the settings apart; a key of a node stands for its class."""
    along: tuple[str, ...]
    """Further keys that differ, but only where ``columns`` do."""
    settings: tuple[Setting, ...]
    repeated: tuple[str, ...]
    """Names of runs left out because another one has the same setting and seed."""
    steps: int | None
    """Steps of all walkers that every run has made, at which what they explored compares; None if nothing is known."""

    @property
    def untested(self) -> int:
        """Number of runs without a test set; if there are any, errors on validation structures are compared too."""
        return sum(not is_tested(run.rounds) for setting in self.settings for run in setting.runs)


@dataclass(frozen=True)
class Metric:
    """A column of the comparison."""

    name: str
    """In ``metrics.csv``, or ``n_structures``."""
    title: str
    unit: str
    decimals: int


_COVERAGE = (
    Metric("coverage", "CV space cov.", "", 2),
    Metric("coverage_at_equal_steps", "CV space cov.", "at equal steps", 2),
)
_REACHED = (
    Metric("phase_transitions", "Transitions", "", 1),
    Metric("energy_rmse_mev_per_atom", "E-RMSE", "meV/atom", 2),
    Metric("force_rmse_ev_per_ang", "F-RMSE", "eV/Å", 3),
    Metric("stress_rmse_mpa", "S-RMSE", "MPa", 1),
    Metric("valid_energy_rmse_mev_per_atom", "E-RMSE", "meV/atom, validation", 2),
    Metric("valid_force_rmse_ev_per_ang", "F-RMSE", "eV/Å, validation", 3),
    Metric("act_position_ps", "Pos. ACT", "ps", 2),
    Metric("act_uncertainty_ps", "Unc. ACT", "ps", 2),
    Metric("n_structures", "Structures", "", 0),
    Metric("test_coverage_atom", "Covered forces", "", 3),
    Metric("test_coverage_atom_50", "Covered forces", "α = 0.5", 3),
    Metric("test_coverage_total", "Covered energies", "", 3),
    Metric("test_coverage_total_50", "Covered energies", "α = 0.5", 3),
)
"""After the coverage and the ranges of variables the rest of the paper's Table 1, with errors on validation structures
where there is no test set; then the shares of held-out errors within their uncertainty."""


def known_metrics(runs: Iterable[Sequence[Row]]) -> list[Metric]:
    """The columns of a comparison of runs, whose ranges of variables are those that their rows tell of."""
    ranges = []
    for columns in range_columns(row for rounds in runs for row in rounds):
        unit = f"{columns.unit}, at equal steps".removeprefix(", ")
        decimals = 0 if columns.unit == "Å³" else 2
        for column, end in ((columns.low, "from"), (columns.high, "to")):
            ranges.append(Metric(f"{column}_at_equal_steps", f"{columns.name} {end}", unit, decimals))
    return [*_COVERAGE, *ranges, *_REACHED]


def is_finished(rounds: Sequence[Row]) -> bool:
    """Whether a run has ended: its last round did not acquire, or nothing that could be labelled."""
    if not rounds:
        return False
    selected = rounds[-1].get("n_selected")
    return selected is None or selected == rounds[-1].get("n_rejected")


def is_tested(rounds: Sequence[Row]) -> bool:
    """Whether a run has errors on a test set."""
    return any(row.get("force_rmse_ev_per_ang") is not None for row in rounds)


def explored_columns(runs: Iterable[Sequence[Row]]) -> list[str]:
    """Columns of ``metrics.csv`` that tell what was explored so far: the coverage, and ranges of variables."""
    ranges = range_columns(row for rounds in runs for row in rounds)
    return ["coverage", *(column for columns in ranges for column in (columns.low, columns.high))]


def explored_against_steps(rounds: Sequence[Row], name: str) -> NDArray[np.float64]:
    """Rows (steps of all walkers so far, a value of :func:`explored_columns`), one a round that explored, [n, 2]."""
    found = [(row.get("md_steps"), row.get(name)) for row in rounds]
    rows = np.array([row for row in found if None not in row], dtype=np.float64).reshape(-1, 2)
    rows[:, 0] = rows[:, 0].cumsum()
    return rows


def final_metrics(rounds: Sequence[Row], steps: int | None = None) -> dict[str, float]:
    """Values of :func:`known_metrics` after the last round, as far as there are any.

    Args:
        rounds: rows of ``metrics.csv``, at least one.
        steps: of all walkers; what they had explored is interpolated between rounds.
    """
    last = rounds[-1]
    sizes = [last.get("n_train"), last.get("n_valid")]
    values = {**last, "n_structures": sum(n for n in sizes if n is not None)}
    for name in explored_columns([rounds]):
        explored = explored_against_steps(rounds, name)
        if steps is not None and len(explored):
            values[f"{name}_at_equal_steps"] = float(np.interp(steps, *explored.T))
    known = {metric.name: values.get(metric.name) for metric in known_metrics([rounds])}
    return {name: float(value) for name, value in known.items() if value is not None}


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); the latter is None for a single value."""
    mean = math.fsum(values) / len(values)
    return mean, statistics.stdev(values) if len(values) > 1 else None


def compare_runs(runs: Iterable[RunResult]) -> Comparison:
    """Groups runs by their settings.

    Rows are in the order of the columns' values where these are numbers, else in that of the runs.
    """
    runs = list(runs)
    flat = [_setting(run.config) for run in runs]
    groups: dict[tuple[tuple[str, Any], ...], dict[Any, RunResult]] = {}
    repeated: list[str] = []
    configs: list[dict[str, Any]] = []
    for run, config in zip(runs, flat, strict=True):
        key = tuple(sorted((k, repr(v)) for k, v in config.items()))
        if key not in groups:
            configs.append(config)
        seeds = groups.setdefault(key, {})
        if run.seed in seeds:
            repeated.append(run.name)
        seeds.setdefault(run.seed, run)
    differing = _differences(configs)
    columns = _sufficient(differing, len(configs))
    settings = []
    for i, seeds in enumerate(groups.values()):
        values = {column: _text(differing[column][i]) for column in columns}
        settings.append(Setting(tuple(values.values()), tuple(seeds.values()), _label(values)))
    ranks = [_ranks(differing[c]) for c in columns]
    order = sorted(range(len(settings)), key=lambda i: [rank[i] for rank in ranks])
    along = tuple(c for c in differing if c not in columns)
    runs = [run for seeds in groups.values() for run in seeds.values()]
    explored = [explored_against_steps(run.rounds, name) for run in runs for name in explored_columns([run.rounds])]
    steps = min((int(curve[-1, 0]) for curve in explored if len(curve)), default=None)
    return Comparison(tuple(columns), along, tuple(settings[i] for i in order), tuple(repeated), steps)


def _setting(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run's setting, by dotted key."""
    flat = _flatten(config)
    return {k: v for k, v in flat.items() if not any(f"{k}.".startswith(f"{part}.") for part in SAME_FOR_ALL)}


_ABSENT = object()
"""In the place of a key that a configuration does not have."""


def _differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Values, one for each configuration, of the keys in which these differ.

    Where the class of a node differs, so do its options: they are left out unless they also differ among
    configurations with the same class.
    """
    keys = list(dict.fromkeys(key for config in configs for key in config))
    values = {key: [config.get(key, _ABSENT) for config in configs] for key in keys}
    values = {key: column for key, column in values.items() if len(_distinct(column)) > 1}
    nodes = [key.removesuffix("._target_") for key in values if key.endswith("._target_")]
    out: dict[str, list[Any]] = {}
    for key, column in values.items():
        name = key.removesuffix("._target_")
        owners = [node for node in nodes if name.startswith(f"{node}.")]
        classes = [tuple(_key(values[f"{node}._target_"][i]) for node in owners) for i in range(len(column))]
        pairs = {(own, _key(value)) for own, value in zip(classes, column, strict=True)}
        if len(pairs) > len(set(classes)):
            is_class = key != name
            out[name] = [str(v).rsplit(".", 1)[-1] if is_class and v is not _ABSENT else v for v in column]
    return out


def _sufficient(differing: Mapping[str, Sequence[Any]], n: int) -> list[str]:
    """Keys, as few as a greedy choice finds, whose values tell all n settings apart as all keys do.

    An option that not all settings have is chosen only where the others do not suffice.
    """
    chosen: list[str] = []
    everywhere = [key for key, column in differing.items() if _ABSENT not in column]

    def told_apart(keys: Sequence[str]) -> int:
        return len(_distinct([tuple(_key(differing[k][i]) for k in keys) for i in range(n)]))

    while told_apart(chosen) < told_apart(list(differing)):
        helpful = [key for key in everywhere if told_apart([*chosen, key]) > told_apart(chosen)]
        chosen.append(max(helpful or differing, key=lambda key: told_apart([*chosen, key])))
    return [key for key in differing if key in chosen]


def _ranks(column: Sequence[Any]) -> list[float]:
    """Sort keys: the values if all are numbers, else the place where each appeared first."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in column):
        return [float(v) for v in column]
    found = [_key(v) for v in column]
    return [float(found.index(v)) for v in found]


def _distinct(values: Iterable[Any]) -> set[Any]:
    return {_key(value) for value in values}


def _key(value: Any) -> str:
    return "" if value is _ABSENT else repr(value)


def _text(value: Any) -> str:
    if value is _ABSENT:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _label(values: Mapping[str, str]) -> str:
    """``FeatureUncertainty, tau=0.25``: a class speaks for itself, a number or an on and off does not."""
    parts = [
        value if value[:1].isalpha() and value not in ("True", "False", "None") else f"{key.rsplit('.', 1)[-1]}={value}"
        for key, value in values.items()
    ]
    return ", ".join(parts) or "all runs"


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; of absolute paths, which other machines do not share, the last part."""
    if isinstance(node, Mapping) and node:
        parts = [_flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in node.items()]
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(node, str) and Path(node).is_absolute():
        return {prefix: Path(node).name}
    # 1 and 1.0 are the same setting, whichever of them a file or wandb holds
    return {prefix: float(node) if isinstance(node, int) and not isinstance(node, bool) else node}
