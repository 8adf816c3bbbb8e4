"""Mean and variance of the volume of copper at constant pressure, by ASE alone: EMT under ``MelchionnaNPT``.

    python scripts/copper_npt_reference.py FOLDER

``tests/dynamics/test_npt_ensemble.py`` compares ubmd's integrators with what this prints: 32 atoms at 600 K and zero
pressure, in a cell that may change fully. Standard errors follow from the effective sample sizes of volumes and of
their squared deviations. Volumes are kept in FOLDER, one file a trajectory, and not computed twice.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.melchionna import MelchionnaNPT
from ase.md.velocitydistribution import Stationary, thermalize_momenta

from ubmd.observables.autocorrelation import effective_sample_size

TRAJECTORIES, STEPS, EQUILIBRATION = 6, 4000, 1000
KELVIN, TIME_STEP, THERMOSTAT_TIME, BAROSTAT_TIME, BULK_MODULUS = 600.0, 5.0, 30.0, 50.0, 100.0  # K, fs, fs, fs, GPa


def trajectory(seed: int) -> np.ndarray:
    """Volumes [STEPS], Å³."""
    atoms = bulk("Cu", "fcc", a=3.637, cubic=True).repeat(2)
    atoms.rattle(0.1, seed=seed)  # about the thermal displacements, or the cell would ring for long
    atoms.calc = EMT()
    thermalize_momenta(atoms, KELVIN, rng=np.random.default_rng(seed))
    Stationary(atoms)
    dynamics = MelchionnaNPT(
        atoms,
        TIME_STEP * units.fs,
        temperature_K=KELVIN,
        externalstress=0.0,
        ttime=THERMOSTAT_TIME * units.fs,
        pfactor=(BAROSTAT_TIME * units.fs) ** 2 * BULK_MODULUS * units.GPa,
    )
    dynamics.run(EQUILIBRATION)
    return np.array([atoms.get_volume() for _ in dynamics.irun(STEPS)][1:])


def main(folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    volumes = []
    for seed in range(TRAJECTORIES):
        file = Path(folder) / f"{seed}.npy"
        if not file.exists():
            np.save(file, trajectory(seed))
        volumes.append(np.load(file))
    joined = np.concatenate(volumes)
    squares = [(v - joined.mean()) ** 2 for v in volumes]
    mean_error = joined.std() / np.sqrt(effective_sample_size(volumes))
    variance_error = np.concatenate(squares).std() / np.sqrt(effective_sample_size(squares))
    print(f"mean volume {joined.mean():.3f} ± {mean_error:.3f} Å³")
    print(f"variance {joined.var():.2f} ± {variance_error:.2f} Å⁶")


if __name__ == "__main__":
    main(sys.argv[1])
