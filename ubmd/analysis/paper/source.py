"""What run folders hold for the paper's figures: settings of finished runs, and what each of them explored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubmd import observables
from ubmd.analysis.comparison import RunResult, compare_runs
from ubmd.analysis.correlations import position_series, uncertainty_series
from ubmd.analysis.explored import frame_values
from ubmd.analysis.looks import Look, experiment_name, looks_of
from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.trajectory import read_trajectory
from ubmd.errors import InputError
from ubmd.observables.autocorrelation import autocorrelation
from ubmd.observables.base import CollectiveVariable
from ubmd.observables.columns import RangeColumns, range_columns
from ubmd.observables.states import States

__all__ = ["Explored", "RoundFrames", "Setting", "Source", "settings_of"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RoundFrames:
    """Frames of one round; f frames."""

    index: int
    """The round."""
    walker: NDArray[np.int64]
    """[f]."""
    step: NDArray[np.int64]
    """[f]."""
    values: Mapping[str, Array]
    """Of each collective variable, [f]."""
    uncertainty: Array
    """[f] largest of the atoms, eV/Å."""


@dataclass(frozen=True, eq=False)
class Explored:
    """What a run explored."""

    rounds: tuple[RoundFrames, ...]
    correlations: Mapping[str, Array]
    """Of ``position`` and ``uncertainty``: rows (lag in ps, Eq. 29), [k, 2], as far as they are defined."""
    crossed: tuple[tuple[NDArray[np.int64], Array], ...]
    """Atomic numbers [n] and positions [n, 3] (Å) where the first walker of each round ended beyond the threshold."""

    def together(self, name: str) -> Array:
        """A variable in all rounds, [f]."""
        return np.concatenate([frames.values[name] for frames in self.rounds])


@dataclass(frozen=True, eq=False)
class Source:
    """A finished run in its folder."""

    result: RunResult
    folder: Path

    @property
    def told(self) -> str:
        """The run in words: folder, seed, rounds and structures."""
        rows = self.result.rounds
        sizes = [(row.get("n_train") or 0) + (row.get("n_valid") or 0) for row in (rows[0], rows[-1])]
        rounds = f"rounds 0 to {len(rows) - 1}" if len(rows) > 1 else "round 0"
        return f"{self.folder}, seed {self.result.seed}, {rounds}, {sizes[0]:.0f} to {sizes[1]:.0f} structures"

    @property
    def is_crystal(self) -> bool:
        """Whether the run followed a volume."""
        return any(columns.name == "volume" for columns in range_columns(self.result.rounds))

    @property
    def states(self) -> States:
        """Named ranges of variables."""
        found = self._part("system").get("states")
        return found if isinstance(found, Mapping) else {}

    @property
    def dt(self) -> float | None:
        """The time step, fs; None if steps are not steps in time."""
        found = self._part("dynamics", "integrator").get("dt")
        return float(found) if isinstance(found, int | float) else None

    @property
    def frame_interval(self) -> int:
        """Steps between regular frames."""
        return int(self._part("dynamics").get("frame_interval") or 1)

    @property
    def threshold(self) -> float | None:
        """The uncertainty that stops a walker, eV/Å."""
        return self._part("dynamics", "stopping").get("uncertainty_threshold")

    @property
    def temperature(self) -> float | None:
        """Of the walkers, K; None if they have none or several."""
        found = self._part("dynamics", "integrator").get("temperature")
        return float(found) if isinstance(found, int | float) else None

    @cached_property
    def explored(self) -> Explored:
        """What the run explored, from its trajectories.

        Raises:
            InputError: a trajectory or a variable that cannot be read; there is no trajectory at all.
        """
        files = sorted(self.folder.glob("rounds/*/trajectory.h5"))
        if not files:
            raise InputError(f"{self.folder} has no trajectory (rounds/*/trajectory.h5)")
        found = [(int(file.parent.name), read_trajectory(file)) for file in files]
        variables = self.variables(found[0][1])
        rounds = tuple(_frames(index, e, variables) for index, e in found)
        self._check_volumes(rounds)
        explorations = [e for _, e in found]
        correlations = {}
        if self.dt is not None:
            for name, series in (("position", position_series), ("uncertainty", uncertainty_series)):
                correlation = autocorrelation(series(explorations, self.frame_interval))
                if np.isfinite(correlation).all():
                    lags = 1e-3 * self.dt * self.frame_interval * np.arange(len(correlation))
                    correlations[name] = np.stack([lags, correlation], axis=1)
        return Explored(rounds, correlations, tuple(_crossings(explorations, self.threshold)))

    def variables(self, exploration: Exploration | None = None) -> dict[str, CollectiveVariable]:
        """The collective variables of the run's system, as far as they are ubmd's own classes.

        Args:
            exploration: which tells whether there is a volume, and of how many atoms.

        Raises:
            InputError: a variable of another package, which a folder's configuration alone does not bring to run.
        """
        out: dict[str, CollectiveVariable] = {}
        if exploration is not None and exploration.pbc.all():
            out["volume"] = observables.Volume(n_atoms=len(exploration.numbers))
        for name, node in (self._part("system").get("variables") or {}).items():
            out[name] = _variable(name, node, self.folder)
        return out

    def _part(self, *keys: str) -> Mapping[str, Any]:
        found: Any = self.result.config
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    def _check_volumes(self, rounds: Sequence[RoundFrames]) -> None:
        """Refuses volumes of other cells than those that ``metrics.csv`` tells of, such as supercells."""
        columns = RangeColumns("volume", "Å³")
        low, high = (self.result.rounds[-1].get(column) for column in (columns.low, columns.high))
        values = [frames.values["volume"] for frames in rounds if "volume" in frames.values]
        if low is None or high is None or not values:
            return
        found = np.concatenate(values)
        if found.min() < low - 1e-3 * low or found.max() > high + 1e-3 * high:
            raise InputError(
                f"{self.folder}: volumes of trajectories ({found.min():.0f} to {found.max():.0f} Å³) are not those of "
                f"metrics.csv ({low:.0f} to {high:.0f} Å³); its structures are of another number of atoms"
            )


@dataclass(frozen=True, eq=False)
class Setting:
    """Runs that differ in nothing but their seeds, and how they are called and drawn."""

    name: str
    look: Look
    sources: tuple[Source, ...]

    @property
    def rounds(self) -> list[Sequence[Mapping[str, float | int | None]]]:
        """Rows of ``metrics.csv`` of each run."""
        return [source.result.rounds for source in self.sources]


def settings_of(sources: Sequence[Source]) -> list[Setting]:
    """Groups runs by their settings, in the paper's order: unbiased ones first, by temperature and pressure."""
    known = {id(source.result): source for source in sources}
    groups = {}
    for setting in compare_runs(source.result for source in sources).settings:
        name = experiment_name(setting.runs[0].config)
        if name in groups:
            name = f"{name}, {setting.label}"
        groups[name] = tuple(known[id(run)] for run in setting.runs)
    order = sorted(groups, key=lambda name: _rank(name, groups[name][0]))
    looks = looks_of({name: groups[name][0].result.config for name in order})
    return [Setting(name, looks[name], groups[name]) for name in order]


def _rank(name: str, source: Source) -> tuple[bool, float, bool, str]:
    return not name.startswith("unbiased"), source.temperature or 0.0, "w/o" in name or "±" in name, name


def _variable(name: str, node: Any, folder: Path) -> CollectiveVariable:
    options = dict(node) if isinstance(node, Mapping) else {}
    target = str(options.pop("_target_", "")).rpartition(".")
    found = getattr(observables, target[2], None) if target[0].startswith("ubmd.observables") else None
    if not (isinstance(found, type) and issubclass(found, CollectiveVariable)):
        raise InputError(f"{folder}: the variable {name} is no class of ubmd.observables; its values are not drawn")
    try:
        return found(**{str(key): value for key, value in options.items()})
    except TypeError as error:
        raise InputError(f"{folder}: the variable {name} cannot be made ({error})") from error


def _frames(index: int, exploration: Exploration, variables: Mapping[str, CollectiveVariable]) -> RoundFrames:
    e = exploration
    return RoundFrames(index, e.walker, e.step, frame_values(variables, e), e.atomic_uncertainty.max(axis=1))


def _crossings(
    explorations: Sequence[Exploration], threshold: float | None
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    out = []
    for e in explorations:
        last = np.flatnonzero(e.walker == e.walker[0])[-1]
        if threshold is not None and e.atomic_uncertainty[last].max() >= threshold:
            out.append((e.numbers, e.positions[last]))
    return out
