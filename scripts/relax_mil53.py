"""Relaxes both phases of MIL-53(Al) and the way between them with GFN2-xTB, and writes ubmd/data/mil53_gfn2.extxyz.

    python scripts/relax_mil53.py [FOLDER]

From the crystal structure: a rattle of 0.03 Å and a relaxation of atoms and cell lead to the large pore. From there the
linkers fold like a wine rack, volume by volume, each relaxed at its volume from the one before; a last relaxation of
atoms and cell leads to the closed pore. Some 200 labels of 3 s on one core. They are kept in FOLDER (data/mil53_path),
from which an interrupted run continues.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from ubmd.data.io import write_structures
from ubmd.reference.labelling import label_structures
from ubmd.reference.store import LabelStore
from ubmd.reference.tblite_reference import TBLiteReference
from ubmd.systems.mil53 import PATH_FILE, crystal_structure
from ubmd.systems.relaxation import CELL_FACTOR, ReferenceCalculator

VOLUMES = (1320, 1200, 1080, 960, 840)  # Å³
FMAX, FMAX_BETWEEN = 0.05, 0.1  # eV/Å


def main(folder: Path) -> None:
    reference = TBLiteReference()
    store = LabelStore(folder / "labels.db")

    def relax(atoms: Atoms, *, constant_volume: bool) -> Atoms:
        atoms.calc = ReferenceCalculator(reference, store)
        target = FrechetCellFilter(atoms, exp_cell_factor=CELL_FACTOR, constant_volume=constant_volume)
        optimiser = BFGS(target, logfile=None)
        optimiser.run(fmax=FMAX_BETWEEN if constant_volume else FMAX, steps=200)
        cell = atoms.cell.cellpar().round(2)
        print(f"{atoms.get_volume():7.1f} Å³  {atoms.get_potential_energy():.4f} eV  {cell}  {optimiser.nsteps} steps")
        atoms.calc = None
        return atoms

    large = crystal_structure()
    large.rattle(0.03, seed=0)
    path = [relax(large, constant_volume=False)]
    for volume in VOLUMES:
        path.append(relax(folded(path[-1], volume), constant_volume=True))
    closed = path[-1].copy()
    closed.rattle(0.03, seed=1)
    path.append(relax(closed, constant_volume=False))
    path.sort(key=lambda atoms: float(atoms.get_volume()))
    for atoms in path:
        # labels belong to the coordinates as the file holds them
        atoms.positions = atoms.positions.round(8)
    labelled = label_structures(path, reference, store).labelled
    labelled[0].info["origin"] = "GFN2-xTB with tblite 0.8.0, scripts/relax_mil53.py of ubmd"
    write_structures(PATH_FILE, labelled)


def folded(atoms: Atoms, volume: float) -> Atoms:
    """A copy with the given volume in Å³, whose diagonal of b and c has kept its length."""
    copy = atoms.copy()
    _, b, c = atoms.cell.lengths()
    area = b * c * volume / atoms.get_volume()
    total, difference = np.sqrt(b**2 + c**2 + 2 * area), np.sqrt(max(b**2 + c**2 - 2 * area, 0.0))
    longer = (total + difference) / 2
    copy.set_cell(np.asarray(atoms.cell) * np.array([[1.0], [longer / b], [area / longer / c]]), scale_atoms=True)
    copy.rattle(0.01, seed=int(volume))  # out of any symmetry
    return copy


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/mil53_path"))
