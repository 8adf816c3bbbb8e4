"""Fig. 2: the largest uncertainty of a structure against its largest error, by method and size of the training set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from ubmd.analysis import style
from ubmd.analysis.figures import draw_hexbins, span_of
from ubmd.analysis.paper.drawn import Drawn, NotDrawnError

__all__ = ["CalibratedFit", "draw_fig2"]

_METHODS = ("posterior", "distance", "ensemble")


@dataclass(frozen=True, eq=False)
class CalibratedFit:
    """A fit (``ubmd train``) and what it says of its test set: columns of ``figures/calibration.csv``."""

    folder: Path
    method: str
    """The kind of uncertainty."""
    n_train: int
    n_valid: int
    seed: Any
    alpha: float
    """Of the calibration of atoms."""
    columns: dict[str, np.ndarray]

    @property
    def size(self) -> tuple[int, int]:
        """Structures to train on and to calibrate with."""
        return self.n_train, self.n_valid


def draw_fig2(fits: Sequence[CalibratedFit], missing: Sequence[str] = ()) -> Drawn:
    """Hexbins of largest errors against largest uncertainties, methods side by side, a row for each size (Fig. 2).

    Args:
        fits: of which each (method, size) is drawn once; of several seeds the structures are drawn together.
        missing: sentences about fits that could not be read.

    Raises:
        NotDrawnError: there is no fit.
    """
    if not fits:
        raise NotDrawnError(
            " ".join(missing)
            or "there is no folder of `ubmd train` with figures/calibration.csv "
            "(uncertainty=posterior, distance or ensemble) among the runs."
        )
    found = [fit.method for fit in fits]
    methods = [m for m in (*_METHODS, *sorted(set(found) - set(_METHODS))) if m in found]
    sizes = sorted({fit.size for fit in fits})
    sentences = [*missing, *(f"No fit with the uncertainty {m} is among the runs." for m in _METHODS if m not in found)]
    names = ("error_ev_per_ang", "uncertainty_ev_per_ang", "uncertainty_50_ev_per_ang")
    span = span_of([fit.columns[name] for fit in fits for name in names if name in fit.columns])
    fig = Figure(figsize=(2.5 * len(methods) + 0.5, 2.55 * len(sizes) + 0.3), layout="constrained", facecolor="white")
    axes: Any = fig.subplots(len(sizes), len(methods), squeeze=False, sharex=True, sharey=True)
    for row, size in enumerate(sizes):
        for column, method in enumerate(methods):
            ax, own = axes[row, column], [f for f in fits if (f.method, f.size) == (method, size)]
            if not own:
                ax.remove()
                sentences.append(f"No fit with the uncertainty {method} has {size[0]} + {size[1]} structures.")
                continue
            _panel(ax, own, span)
            if row == 0:
                ax.set_title(method, fontsize=9, color=style.INK)
        axes[row, 0].set_ylabel(f"{size[0]} + {size[1]} structures\nMax. force RMSE (eV/Å)")
    for column in axes.T:
        lowest = [ax for ax in column if ax.figure is not None][-1]
        lowest.tick_params(labelbottom=True)
        lowest.set_xlabel("Max. uncertainty (eV/Å)")
    fig.supxlabel(f"{len(fits)} fits", fontsize=6.5, color=style.GREY, x=0.995, ha="right")
    return Drawn(_caption(fits, sentences), fig, missing=tuple(sentences))


def _panel(ax: Any, fits: Sequence[CalibratedFit], span: tuple[float, float]) -> None:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([fit.columns[name] for fit in fits])

    error, uncertainty = joined("error_ev_per_ang"), joined("uncertainty_ev_per_ang")
    pale = "uncertainty_50_ev_per_ang"
    half = joined(pale) if all(pale in fit.columns for fit in fits) else None
    draw_hexbins(ax, error, uncertainty, alpha=fits[0].alpha, half=half, span=span)
    if len(error) > 2:
        told = f"Pearson {np.corrcoef(uncertainty, error)[0, 1]:.2f}"
        told += f"\nSpearman {spearmanr(uncertainty, error)[0]:.2f}"
        style.note(ax, told, corner="lower right")


def _caption(fits: Sequence[CalibratedFit], missing: Sequence[str]) -> str:
    alphas = ", ".join(f"{alpha:g}" for alpha in sorted({fit.alpha for fit in fits}))
    lines = [
        "Fig. 2. Largest atomic force RMSE of a test structure against its largest calibrated atomic uncertainty. "
        f"Blue: calibrated with α = {alphas}; grey: α = 0.5. On or below the red diagonal the uncertainty covers the "
        "error. Rows: structures trained on + structures calibrated with.",
        "",
        "Made from:",
    ]
    for fit in fits:
        n = len(fit.columns["error_ev_per_ang"])
        lines.append(
            f"- {fit.method}, {fit.n_train} + {fit.n_valid}: {fit.folder}, seed {fit.seed}, {n} test structures"
        )
    if missing:
        lines += ["", "Not drawn:", *(f"- {sentence}" for sentence in missing)]
    return "\n".join(lines) + "\n"
