"""Structures as views that can be turned, by pointer and by keyboard, with the errors of their atoms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from ase.neighborlist import neighbor_list
from matplotlib.colors import to_hex

from ubmd.analysis.page.markup import Markup, paragraph, table, tag
from ubmd.analysis.page.worst import atomic_errors

__all__ = ["HINT", "colour_bar", "structure_view"]

_COLOURS = matplotlib.colormaps["YlOrRd"]
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
HINT = "Drag a view or use the arrow keys to turn it, + and − to zoom, N to go from atom to atom, 0 to reset."
"""How a view is used."""


def structure_view(atoms: Atoms, title: str, largest: float) -> Markup:
    """A structure with predictions as a view, a caption and a table of its atoms.

    Args:
        atoms: a structure of :class:`~ubmd.analysis.page.worst.WorstStructures`.
        title: of the view.
        largest: error at the end of the scale of colours, eV/Å.
    """
    errors, bounds = atomic_errors(atoms), atoms.arrays["atomic_uncertainty"]
    worst = int(errors.argmax())
    energy = 1e3 * (atoms.info["model_energy"] - atoms.info["REF_energy"]) / len(atoms)
    symbol = chemical_symbols[atoms.numbers[worst]]
    formula = atoms.get_chemical_formula().translate(_SUBSCRIPTS)
    beyond = ", which it exceeds" if errors[worst] > bounds[worst] else ""
    told = (
        f"{formula}: worst atom {symbol} {worst} with a force error of {errors[worst]:.3g} eV/Å "
        f"(uncertainty {bounds[worst]:.3g}{beyond}); energy off by {energy:+.1f} meV/atom"
    )
    data = json.dumps(_view_data(atoms, errors, bounds, largest), allow_nan=False, separators=(",", ":"))
    # the only way out of a script element is a <
    script = Markup(f'<script type="application/json">{data.replace("<", chr(92) + "u003c")}</script>')
    label = f"3D view of {title}. {told}. {HINT}"
    canvas = tag(
        "canvas", "The view needs JavaScript.", tabindex="0", role="application", aria_roledescription="3D view",
        aria_label=label,
    )  # fmt: skip
    controls = tag(
        "div",
        tag("button", "Colours of elements", type="button", aria_pressed="false"),
        tag("output", aria_live="polite"),
        class_="controls",
    )
    rows = [
        (f"{chemical_symbols[atoms.numbers[i]]} {i}", f"{errors[i]:.4f}", f"{bounds[i]:.4f}")
        for i in np.argsort(-errors, kind="stable")
    ]
    header = ("Atom", "Error (eV/Å)", "Uncertainty (eV/Å)")
    listed = tag("details", tag("summary", "All atoms"), table(f"Atoms of {title}", header, rows))
    caption = tag("figcaption", tag("strong", title), ". ", told, ".")
    view = tag("figure", canvas, controls, script, caption, class_="view")
    return tag("article", view, listed)


def colour_bar(largest: float) -> Markup:
    """The scale of colours from 0 to an error in eV/Å."""
    stops = ",".join(to_hex(_COLOURS(x)) for x in np.linspace(0, 1, 9))
    bar = tag("div", class_="bar", style=f"background:linear-gradient(to right,{stops})")
    ends = tag("div", tag("span", "0"), tag("span", f"{largest:.3g} eV/Å"), class_="ends")
    return tag("div", paragraph("Error of the force on an atom"), bar, ends, class_="scale")


def _view_data(atoms: Atoms, errors: Any, bounds: Any, largest: float) -> dict[str, Any]:
    """What the view draws: [x, y, z], radius, colours and words of each atom, bonds, and the edges of the cell."""
    finite = np.isfinite(errors)
    shades = np.clip(np.where(finite, errors, largest) / (largest or 1.0), 0.0, 1.0)
    cell = np.asarray(atoms.cell) if atoms.pbc.any() else np.zeros((0, 3))
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) @ cell if len(cell) else cell
    middle = corners.mean(axis=0) if len(cell) else atoms.positions.mean(axis=0)
    # what is long lies along the width of the view
    axes = np.linalg.svd((corners if len(cell) else atoms.positions) - middle, full_matrices=True)[2]
    axes = axes * np.sign(np.linalg.det(axes))  # no mirror image
    return {
        "atoms": [
            {
                "at": _rounded(axes @ (position - middle)),
                "radius": round(0.5 * float(covalent_radii[z]), 3),
                "error": to_hex(_COLOURS(shade)),
                "element": to_hex(tuple(jmol_colors[z])),
                "words": f"{chemical_symbols[z]} {i}: error {error:.3g}, uncertainty {bound:.3g} eV/Å",
            }
            for i, (z, position, shade, error, bound) in enumerate(
                zip(atoms.numbers, atoms.positions, shades, errors, bounds, strict=True)
            )
        ],
        "order": np.argsort(-errors, kind="stable").tolist(),
        "bonds": _bonds(atoms),
        "edges": [
            [_rounded(axes @ (corners[k] - middle)) for k in (a, b)]
            for a in range(len(corners))
            for b in range(a)
            if (a ^ b).bit_count() == 1
        ],
    }


def _bonds(atoms: Atoms) -> list[list[int]]:
    """Pairs of atoms of the same image that are about as close as their covalent radii."""
    first, second, shifts = neighbor_list("ijS", atoms, [1.15 * float(covalent_radii[z]) for z in atoms.numbers])
    inside = (first < second) & ~shifts.any(axis=1)
    return np.stack([first[inside], second[inside]], axis=1).tolist()


def _rounded(position: Sequence[float]) -> list[float]:
    return [round(float(x), 3) for x in position]
