"""What tests of foundation potentials share."""

from __future__ import annotations

from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from ubmd.cli import main as cli

QUICK = (
    "logger=csv",
    "trainer.accelerator=cpu",
    "calibration.total.too_small=maximum",
    "calibration.atomic.too_small=maximum",
)
"""Of a fit that is to show that there is one."""


def mixed() -> list[Atoms]:
    """Of different sizes, elements and periodicity; one cell is smaller than the cutoff."""
    salt = bulk("NaCl", "rocksalt", 5.6, cubic=True)
    silicon = bulk("Si")
    ethanol = molecule("CH3CH2OH")
    for seed, atoms in enumerate((salt, silicon, ethanol)):
        atoms.rattle(0.1, seed=seed)
    return [salt, ethanol, silicon]


def copper(n: int, seed: int) -> list[Atoms]:
    out = []
    for k in range(n):
        atoms = bulk("Cu", "fcc", 3.6, cubic=True)
        atoms.rattle(0.1, seed=seed + k)
        atoms.calc = EMT()
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
        atoms.info["REF_stress"] = atoms.get_stress(voigt=False)
        atoms.calc = None
        out.append(atoms)
    return out


def run(*words: str) -> int:
    return cli.main([str(word) for word in words])
