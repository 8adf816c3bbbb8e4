"""Walker steps of crystals of 32 to about 10,000 atoms with the paper's network, at constant volume."""

from __future__ import annotations

from ase import Atoms
from ase.build import bulk

from benchmarks.rows import Found, Setting
from benchmarks.subjects import configuration, fitted, framework, shaken
from benchmarks.walking import Walk, walk_rows

KINDS = ("plain", "uncertain", "biased")
CELLS = {
    "copper": {32: (2, 2, 2), 500: (5, 5, 5)},
    "mil53": {76: (1, 1, 1), 912: (3, 2, 2), 2736: (4, 3, 3), 9120: (6, 5, 4)},
}
"""By material and number of atoms: how often the smallest cell is repeated."""
WORDS = {"copper": (), "mil53": ("model.cutoff=6.0",)}
"""Of the configuration."""
QUICK = 1000
"""Most atoms of a quick run."""


def names(*, quick: bool) -> list[str]:
    """Of the rows of this group."""
    sizes = [(material, n) for material, cells in CELLS.items() for n in cells if n <= QUICK or not quick]
    return [_name(kind, material, n) for material, n in sizes for kind in KINDS]


def measure(setting: Setting, found: Found) -> None:
    """Adds the rows."""
    for material, cells in CELLS.items():
        walks = []
        for n, times in cells.items():
            steps, repeats = (2, 2) if n > QUICK or setting.quick else (10, 3)
            start = smallest(material).repeat(times)
            start.rattle(0.03, seed=0)
            for kind in KINDS:
                walks.append(Walk(_name(kind, material, n), kind, [start], 1, steps, repeats))
        walks = [walk for walk in walks if walk.name in setting.names]
        if not walks:
            continue
        structures = shaken(smallest(material).repeat(next(iter(cells.values()))), 20)
        cfg = configuration(*WORDS[material])
        subject = fitted(cfg, structures, 60, batch_size=4, device=setting.device, threads=setting.threads)
        walk_rows(
            subject, walks, found, passes=1 if setting.quick else 2, threads=setting.threads, device=setting.device
        )


def smallest(material: str) -> Atoms:
    """The smallest cell that is periodic along its axes."""
    return bulk("Cu", cubic=True) if material == "copper" else framework()


def _name(kind: str, material: str, n: int) -> str:
    return f"step_{kind}_{material}_{n}"
