"""Whether uncertainties rank errors, have their size, and are as small as can be; and the calibration curve."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from ubmd.analysis import style
from ubmd.analysis.evaluation import Evaluation
from ubmd.errors import InputError

__all__ = ["calibration_curves", "confidence_levels", "correlations", "miscalibration_area", "uncertainty_metrics"]

Array = NDArray[np.float64]

_COMPONENTS = {"atom": 3, "total": 1}
"""Normal variables in the error of a force, the RMSE of its components, and in that of an energy."""


def confidence_levels(error: ArrayLike, bound: ArrayLike, alpha: float, components: int) -> Array:
    """The confidence [n] at which each error would just be covered, if errors were normal about zero.

    A calibrated uncertainty is a bound that errors exceed with probability alpha. For an error that is the
    root mean square of so many normal components, chi-distributed, that says what their standard deviation is, and so
    which share of all errors ought to be smaller than the one at hand. Of uncertainties that are right at every
    confidence these shares are uniform in [0, 1].

    Args:
        error: [n] non-negative.
        bound: [n] its uncertainty, calibrated.
        alpha: that it was calibrated with.
        components: of the error.
    """
    e, u = np.asarray(error, dtype=np.float64), np.asarray(bound, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(e == 0, 0.0, e / u)
    return chi.cdf(ratio * chi.ppf(1 - alpha, components), components)


def miscalibration_area(levels: ArrayLike) -> float:
    """Area between the calibration curve and the diagonal, from 0 to 0.5 (Kuleshov, Fenner and Ermon 2018).

    The curve is the share of errors within the bound of each confidence p; its distance from p is integrated exactly.

    Args:
        levels: [n] as :func:`confidence_levels` gives them.
    """
    v = np.sort(np.asarray(levels, dtype=np.float64))
    edges = np.concatenate([[0.0], v, [1.0]])
    heights = np.arange(len(v) + 1) / len(v)
    # the integral of |h - p| between two edges, on either side of h
    left, right = edges[:-1] - heights, edges[1:] - heights
    return float(np.sum(right * np.abs(right) - left * np.abs(left)) / 2)


def correlations(uncertainty: ArrayLike, error: ArrayLike) -> tuple[float | None, float | None]:
    """Pearson's and Spearman's correlation of uncertainties [n] and errors [n]; None where one is all alike."""
    u, e = (torch.as_tensor(np.asarray(values, dtype=np.float64)) for values in (uncertainty, error))
    if len(u) < 2 or not all(torch.isfinite(x).all() and x.min() < x.max() for x in (u, e)):
        return None, None
    return float(pearson_corrcoef(u, e)), float(spearman_corrcoef(u, e))


def uncertainty_metrics(found: Evaluation, alpha: float) -> dict[str, Any]:
    """How good calibrated uncertainties are, ``_atom`` for forces on atoms and ``_total`` for energies per atom.

    ``pearson`` and ``spearman``, the correlations of uncertainty and error (None where either is all alike);
    ``miscalibration_area``, see :func:`miscalibration_area`; and the sharpness, the root mean square of the standard
    deviations of a force component and of the energy per atom that the uncertainties stand for: of two that are
    calibrated alike the sharper one knows more.

    Args:
        found: structures with their uncertainties.
        alpha: that these were calibrated with.
    """
    kinds = {
        "atom": (found.atomic_error, found.atomic_uncertainty),
        "total": (found.total_error, found.uncertainty),
    }
    sharpness = {"atom": ("sharpness_atom_ev_per_ang", 1.0), "total": ("sharpness_total_mev_per_atom", 1e3)}
    out: dict[str, Any] = {}
    for kind, (error, bound) in kinds.items():
        out[f"pearson_{kind}"], out[f"spearman_{kind}"] = correlations(bound, error)
        n = _COMPONENTS[kind]
        out[f"miscalibration_area_{kind}"] = miscalibration_area(confidence_levels(error, bound, alpha, n))
        name, unit = sharpness[kind]
        # a bound on the root mean square of n components of deviation s is s chi_n / sqrt(n)
        out[name] = float(unit * np.sqrt(np.mean(np.square(bound)) * n) / chi.ppf(1 - alpha, n))
    return out


def calibration_curves(found: Evaluation, alpha: float) -> Figure:
    """The share of errors within the bound of each confidence, for forces on atoms and energies.

    Args:
        found: structures with their uncertainties.
        alpha: that these were calibrated with.

    Raises:
        InputError: there is no structure.
    """
    if not len(found.n_atoms):
        raise InputError("there is no structure to draw; give those of a test set")
    fig, (ax,) = style.new_figure(3.4, 3.2)
    style.style_axes(ax, boxed=True)
    ax.plot([0, 1], [0, 1], color=style.GREY, lw=1.0, ls=(0, (4, 3)), zorder=1)
    ax.axvline(1 - alpha, color=style.GREY, lw=0.8, ls=(0, (1, 2)), zorder=1)
    kinds = (
        ("forces on atoms", "atom", found.atomic_error, found.atomic_uncertainty, style.BLUE),
        ("energies", "total", found.total_error, found.uncertainty, style.RED),
    )
    for label, kind, error, bound, colour in kinds:
        levels = np.sort(confidence_levels(error, bound, alpha, _COMPONENTS[kind]))
        shares = np.arange(len(levels) + 1) / len(levels)
        area = miscalibration_area(levels)
        ax.stairs(shares, [0, *levels, 1], baseline=None, color=colour, lw=1.4, label=f"{label} ({area:.2f})", zorder=3)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set_xlabel("Confidence")
    ax.set_ylabel("Share of errors covered")
    style.legend_above(ax)
    return fig
