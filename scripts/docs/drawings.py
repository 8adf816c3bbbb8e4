"""The drawings of the architecture page, as SVG that takes its colours from the page."""

from __future__ import annotations

ROOMS = (
    ("testing", "the contracts as tests, for packages outside"),
    ("cli", "words of the command line to a checked configuration"),
    ("commands", "learn, train, evaluate, md, label, serve, export, compare and more: configuration to objects"),
    ("rounds", "the loop, one round, one fit"),
    ("analysis", "numbers, tables, figures, the report"),
    ("interfaces", "ASE calculator"),
    ("callbacks", "thin Lightning adapters: calibrate, explore, acquire"),
    ("training", "LightningModule, losses"),
    ("dynamics", "walkers, stopping, trajectories; integrators/"),
    ("bias", "bias by the uncertainty, metadynamics"),
    ("selection", "max_det, max_dist, LCMD, ..."),
    ("uncertainty", "features, posterior, distance, ensemble, calibration"),
    ("models", "atomic energies; forces and stress by differentiation"),
    ("systems", "starting structures, relaxation, test sets"),
    ("runs", "the folder of a run: store, checksums, continuation"),
    ("reference", "labels: xTB, CP2K, ORCA, ASE, ff19SB; where they run"),
    ("observables", "collective variables, coverage, autocorrelation"),
    ("data", "structures, files, neighbours, batches"),
    ("ground floor", "errors, files, seeding, units, configuration"),
)
"""From top to bottom: a room may use what stands below it, never what stands above."""

STATIONS = (
    ("fit", "best weights of the", "labelled structures"),
    ("features", "one fingerprint", "for each atom"),
    ("calibrate", "uncertainties cover", "95 % of the errors"),
    ("explore", "walkers on E − τu until", "the uncertainty is high"),
    ("select", "the batch that adds", "the most"),
    ("label", "energy, forces, stress", "by the reference"),
)


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{text}</text>'


def rooms() -> str:
    """The rooms of the package, one storey each."""
    high, wide = 34, 720
    out = [
        f'<svg viewBox="0 0 {wide} {high * len(ROOMS)}" class="drawing" role="img" aria-label="Rooms of the package">'
    ]
    for level, (name, content) in enumerate(ROOMS):
        y = level * high
        out.append(f'<rect x="1" y="{y + 2}" width="{wide - 2}" height="{high - 4}" rx="4"/>')
        out += [_text(14, y + 22, name, "name"), _text(150, y + 22, content, "note")]
    return "".join([*out, "</svg>"])


def a_round() -> str:
    """A round as a ring of stations."""
    wide, high, step_x, step_y = 210, 84, 255, 150
    places = [(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (0, 1)]
    out = ['<svg viewBox="0 0 724 262" class="drawing" role="img" aria-label="A round of active learning">']
    out.append(
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" class="tip"/></marker></defs>'
    )
    for (name, first, second), (column, row) in zip(STATIONS, places, strict=True):
        x, y = 2 + column * step_x, 10 + row * step_y
        out.append(f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="6"/>')
        out += [_text(x + 12, y + 24, name, "name"), _text(x + 12, y + 48, first, "note")]
        out.append(_text(x + 12, y + 68, second, "note"))
    arrows = [(212, 52, 255, 52), (467, 52, 510, 52), (617, 94, 617, 158), (512, 202, 469, 202), (257, 202, 214, 202)]
    arrows.append((107, 160, 107, 96))
    for x1, y1, x2, y2 in arrows:
        out.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" marker-end="url(#tip)"/>')
    return "".join([*out, "</svg>"])


DRAWINGS = {"rooms": rooms, "round": a_round}
