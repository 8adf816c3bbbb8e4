from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.mixing import LinearCombinationCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength
from ase.db import connect
from ase.filters import FrechetCellFilter
from ase.io import Trajectory
from ase.md.langevin import Langevin
from ase.md.melchionna import MelchionnaNPT
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from hydra.utils import instantiate

from ubmd.bias.biased import BiasedPotential
from ubmd.data.batch import collate
from ubmd.errors import InputError
from ubmd.interfaces import ase as module
from ubmd.interfaces.ase import UBMDCalculator, torch_device
from ubmd.models.potential import Memory, Potential, Prediction
from ubmd.uncertainty.checkpoint import load_potential, save_potential
from ubmd.uncertainty.potential import UncertainPotential

CUTOFF = 4.0
MODEL = {
    "_target_": "ubmd.models.gmnn.GMNN",
    "species": ["H", "C", "O"],
    "cutoff": CUTOFF,
    "n_basis": 3,
    "hidden": [16, 16],
    "seed": 2,
}
UNCERTAINTY = {
    "_target_": "ubmd.uncertainty.feature_uncertainty.FeatureUncertainty",
    "_partial_": True,
    "features": {
        "_target_": "ubmd.uncertainty.features.SketchedGradients",
        "_partial_": True,
        "n_projections": 32,
    },
}


def molecules(count: int, seed: int, amplitude: float = 0.1) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    base = np.array([[0, 0, 0], [1.2, 0.1, 0], [-0.6, 0.9, 0.1], [-0.5, -0.9, 0.3], [1.8, 1.1, 0.9]])
    return [Atoms("COHHH", positions=base + amplitude * rng.normal(size=(5, 3))) for _ in range(count)]


def crystals(count: int, seed: int) -> list[Atoms]:
    """Triclinic, and smaller than the cutoff in every direction: atoms neighbour their own images."""
    rng = np.random.default_rng(seed)
    cell = np.array([[2.9, 0.0, 0.0], [0.7, 3.1, 0.0], [-0.4, 0.5, 3.4]])
    points = np.array([[0.0, 0.0, 0.0], [0.45, 0.55, 0.4], [0.1, 0.5, 0.8]]) @ cell
    return [Atoms("COH", positions=points + 0.1 * rng.normal(size=(3, 3)), cell=cell, pbc=True) for _ in range(count)]


def save(path: Path, dtype: torch.dtype) -> Path:
    model = instantiate(MODEL).to(dtype)
    model.energy_unit.fill_(3.0)  # eV
    uncertainty = instantiate(UNCERTAINTY)(model=model)
    structures = [*molecules(6, 10), *crystals(6, 11)]
    uncertainty.fit(model, [collate([a], CUTOFF, dtype=dtype) for a in structures])
    uncertainty.total_scale.fill_(1.7)
    uncertainty.atomic_scale.fill_(0.6)
    save_potential(path, model, uncertainty, model_config=MODEL, uncertainty_config=UNCERTAINTY)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("potential") / "model.ckpt", torch.float64)


@pytest.fixture(scope="module")
def trained(checkpoint: Path) -> UncertainPotential:
    return load_potential(checkpoint)


def direct(trained: UncertainPotential, atoms: Atoms, tau: float = 0.0, memory: Memory | None = None) -> Prediction:
    """The same without ASE, and with neighbours just to the cutoff."""
    potential = BiasedPotential(Potential(trained.model), trained.uncertainty, tau, window=3)
    return potential(collate([atoms], CUTOFF, dtype=torch.float64), memory, stress=bool(atoms.pbc.all()))


def count_evaluations(calc: UBMDCalculator, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records which of the two potentials is evaluated."""
    seen: list[str] = []
    potentials = (("full", calc._potential), ("plain", calc._potential.potential), ("model", calc._model))
    for name, potential in potentials:
        forward = potential.forward

        def counted(*args: object, _name: str = name, _forward: object = forward, **kwargs: object) -> object:
            seen.append(_name)
            return _forward(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(potential, "forward", counted)
    return seen


@pytest.mark.parametrize("atoms", [molecules(1, 0)[0], crystals(1, 0)[0]], ids=["molecule", "crystal"])
def test_equals_direct_evaluation(checkpoint: Path, trained: UncertainPotential, atoms: Atoms) -> None:
    atoms = atoms.copy()
    atoms.calc = calc = UBMDCalculator(checkpoint)
    expected = direct(trained, atoms)
    assert expected.uncertainty is not None
    assert expected.atomic_uncertainty is not None
    np.testing.assert_allclose(atoms.get_potential_energy(), expected.energy.item(), rtol=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), expected.forces.numpy(), atol=1e-12)
    uncertainty = calc.get_property("uncertainty", atoms)
    np.testing.assert_allclose(uncertainty, expected.uncertainty.item(), rtol=1e-10)
    atomic = calc.get_property("atomic_uncertainty", atoms)
    assert calc.uncertainty == uncertainty
    np.testing.assert_array_equal(calc.atomic_uncertainty, atomic)
    np.testing.assert_allclose(atomic, expected.atomic_uncertainty.numpy(), rtol=1e-10)
    if atoms.pbc.all():
        assert expected.stress is not None
        np.testing.assert_allclose(atoms.get_stress(voigt=False), expected.stress[0].numpy(), atol=1e-12)


@pytest.mark.parametrize("atoms", [molecules(1, 1)[0], crystals(1, 1)[0]], ids=["molecule", "crystal"])
@pytest.mark.parametrize("tau", [0.0, 1.5])
def test_derivatives_of_the_energy(trained: UncertainPotential, atoms: Atoms, tau: float) -> None:
    """With plain factors for strengths the biased forces and stress derive from the biased energy, too."""
    atoms = atoms.copy()
    crystal = bool(atoms.pbc.all())
    atoms.calc = UBMDCalculator(trained, tau=tau, tau_stress=tau * crystal, rescale=False)
    forces = atoms.get_forces()
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, 1e-5), atol=1e-7)
    assert np.abs(forces).max() > 0.01
    if crystal:
        numerical = calculate_numerical_stress(atoms, 1e-5)
        np.testing.assert_allclose(atoms.get_stress(), numerical, atol=1e-8)
        assert np.abs(numerical).max() > 1e-4


def test_precision_is_the_models(tmp_path: Path) -> None:
    atoms = molecules(1, 2)[0]
    single, double = (
        UBMDCalculator(save(tmp_path / f"{dtype}.ckpt", dtype)) for dtype in (torch.float32, torch.float64)
    )
    forces = single.get_property("forces", atoms)
    assert forces.dtype == np.float64
    assert (forces == forces.astype(np.float32)).all()
    np.testing.assert_allclose(forces, double.get_property("forces", atoms), atol=1e-4)


def test_uncertainties_only_when_asked_for(trained: UncertainPotential, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = crystals(1, 3)[0]
    calc = UBMDCalculator(trained)
    seen = count_evaluations(calc, monkeypatch)
    energy = calc.get_property("energy", atoms)
    assert set(calc.results) == {"energy", "free_energy"}
    assert "plain" not in seen, "no forces were asked for"
    seen.clear()
    calc.get_property("forces", atoms)
    calc.get_property("stress", atoms)
    assert seen.count("plain") == 1
    assert set(calc.results) == {"energy", "free_energy", "forces", "stress"}
    seen.clear()
    calc.get_property("atomic_uncertainty", atoms)
    assert calc.get_property("bias_energy", atoms) == 0
    for name in ("energy", "forces", "stress", "free_energy", "uncertainty"):
        calc.get_property(name, atoms)
    assert seen.count("full") == 1
    assert "plain" not in seen
    calc.get_property("energies", atoms)
    assert set(calc.results) == set(calc.implemented_properties)
    assert calc.atomic_uncertainty is not None, "more of the same structure leaves what is known"
    assert calc.get_property("energy", atoms) == energy
    seen.clear()
    atoms.positions += 0.01
    calc.get_property("uncertainty", atoms)
    calc.get_property("forces", atoms)
    assert seen.count("full") == 1
    assert "plain" not in seen
    calc.calculate(atoms, ["energies"])
    assert set(calc.results) == {"energy", "free_energy", "energies"}


def test_computed_again_when_something_that_enters_has_changed(
    trained: UncertainPotential, monkeypatch: pytest.MonkeyPatch
) -> None:
    calc = UBMDCalculator(trained)
    seen = count_evaluations(calc, monkeypatch)
    atoms = crystals(1, 3)[0]

    def evaluations() -> int:
        seen.clear()
        forces, stress = calc.get_property("forces", atoms), calc.get_property("stress", atoms)
        fresh = UBMDCalculator(trained)
        np.testing.assert_allclose(forces, fresh.get_property("forces", atoms), atol=1e-10)
        np.testing.assert_allclose(stress, fresh.get_property("stress", atoms), atol=1e-10)
        return seen.count("plain") - 1

    assert evaluations() == 1
    assert evaluations() == 0
    atoms.set_initial_charges([1.0, 0.0, 0.0])  # the potential knows no charges
    assert evaluations() == 0
    atoms.pbc = (True, True, False)
    assert evaluations() == 1
    atoms.set_cell(atoms.cell.array * 1.02)
    assert evaluations() == 1
    atoms.pbc = False
    assert evaluations() == 1
    atoms.set_cell(atoms.cell.array * 1.02)  # of a molecule in a box: the volume that its stress is per
    assert evaluations() == 1
    assert evaluations() == 0


@pytest.mark.parametrize("atoms", [molecules(1, 20)[0], crystals(1, 20)[0]], ids=["molecule", "crystal"])
def test_energies_of_atoms(trained: UncertainPotential, atoms: Atoms) -> None:
    """They add up to the energy, and atoms beyond each other's reach have those that they have alone."""
    calc = UBMDCalculator(trained)
    alone = calc.get_property("energies", atoms)
    np.testing.assert_allclose(alone.sum(), calc.get_property("energy", atoms), rtol=1e-13)
    np.testing.assert_allclose(alone.sum(), direct(trained, atoms).energy.item(), rtol=1e-12)
    assert np.ptp(alone) > 0.01
    if not atoms.pbc.any():
        both = atoms + Atoms("CO", [[30, 0, 0], [31.1, 0.2, 0]])
        both.calc = UBMDCalculator(trained)
        np.testing.assert_allclose(both.get_potential_energies()[: len(atoms)], alone, rtol=1e-12)
    biased = UBMDCalculator(trained, tau=0.5)
    with pytest.raises(PropertyNotImplementedError, match="a bias belongs to no single atom"):
        biased.get_property("energies", atoms)


def test_bias_energy(trained: UncertainPotential) -> None:
    atoms = molecules(1, 21)[0]
    biased = UBMDCalculator(trained, tau=0.7, rescale=False)
    energy, bias = biased.get_property("energy", atoms), biased.get_property("bias_energy", atoms)
    np.testing.assert_allclose(energy - bias, UBMDCalculator(trained).get_property("energy", atoms), rtol=1e-12)
    np.testing.assert_allclose(bias, -0.7 * biased.get_property("uncertainty", atoms), rtol=1e-6)


def test_another_precision(tmp_path: Path) -> None:
    """In float64 forces derive from energies to digits that float32 does not have; the given potential stays."""
    single = load_potential(save(tmp_path / "single.ckpt", torch.float32))
    atoms = crystals(1, 22)[0]
    coarse, fine = UBMDCalculator(single), UBMDCalculator(single, dtype="float64")
    assert next(single.model.parameters()).dtype == torch.float32
    for name in ("energy", "forces", "stress", "uncertainty", "atomic_uncertainty"):
        values = [np.asarray(calc.get_property(name, atoms)) for calc in (coarse, fine)]
        np.testing.assert_allclose(*values, rtol=2e-4, atol=2e-5)
        assert (values[0] != values[1]).any()
    numerical = calculate_numerical_forces_of(fine, atoms)
    np.testing.assert_allclose(fine.get_property("forces", atoms), numerical, atol=1e-7)
    assert UBMDCalculator(tmp_path / "single.ckpt", dtype=torch.float64).todict()["dtype"] == "float64"
    with pytest.raises(InputError, match="dtype=float16 must be float32 or float64"):
        UBMDCalculator(single, dtype="float16")


def calculate_numerical_forces_of(calc: UBMDCalculator, atoms: Atoms) -> np.ndarray:
    atoms = atoms.copy()
    atoms.calc = calc
    return calculate_numerical_forces(atoms, 1e-5)


def test_parameters_are_told_and_stay(checkpoint: Path, tmp_path: Path) -> None:
    atoms = molecules(1, 23)[0]
    atoms.calc = calc = UBMDCalculator(checkpoint, tau=0.5, species_weights={"H": 0.0})
    assert calc.todict() == {
        "potential": str(checkpoint),
        "dtype": "float64",
        "tau": 0.5,
        "tau_stress": 0.0,
        "window": 100,
        "rescale": True,
        "species_weights": {"H": 0.0},
    }
    assert UBMDCalculator(checkpoint).todict() == {"potential": str(checkpoint), "dtype": "float64"}
    atoms.get_forces()
    with connect(tmp_path / "them.db") as database:
        row = database.get(database.write(atoms))
    assert (row.calculator, row.calculator_parameters) == ("ubmd", calc.todict())
    with pytest.raises(InputError, match="tau cannot be set any more; make another calculator"):
        calc.set(tau=0.1)


def test_bias_follows_the_trajectory(trained: UncertainPotential, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows advance once for each new configuration, whatever is asked of it and in which order."""
    calc = UBMDCalculator(trained, tau=0.7, window=3)
    seen = count_evaluations(calc, monkeypatch)
    memory = None
    steps = molecules(6, 4)
    for number, atoms in enumerate(steps):
        expected = direct(trained, atoms, 0.7, memory)
        memory = expected.memory
        np.testing.assert_allclose(calc.get_property("forces", atoms), expected.forces.numpy(), atol=1e-10)
        with pytest.raises(PropertyNotImplementedError):
            calc.get_property("stress", atoms)
        atoms.set_initial_charges(np.ones(len(atoms)))
        np.testing.assert_allclose(calc.get_property("energy", atoms), expected.energy.item(), rtol=1e-12)
        calc.get_property("uncertainty", atoms)
        assert seen == ["full"] * (number + 1)
        assert expected.tau is not None
        assert (expected.tau.item() > 0) == (number >= 2)
    other = steps[-1][[0, 1, 2, 3]]
    np.testing.assert_allclose(calc.get_property("forces", other), direct(trained, other).forces, atol=1e-10)


def test_constraints_take_atoms_out_of_the_bias(trained: UncertainPotential) -> None:
    free, held = UBMDCalculator(trained, tau=0.5, window=1), UBMDCalculator(trained, tau=0.5, window=1)
    atoms = molecules(1, 0)[0]
    plain = direct(trained, atoms).forces.numpy()
    unconstrained = free.get_forces(atoms)
    atoms.set_constraint([FixAtoms([0, 3]), FixBondLength(1, 2)])
    forces = held.get_forces(atoms)
    np.testing.assert_array_equal(forces[[0, 3]], plain[[0, 3]])
    assert np.abs(forces - plain)[[1, 2, 4]].min(axis=1).max() > 0
    assert np.abs(forces - unconstrained)[[1, 2, 4]].max() > 1e-6, "another strength"


def test_stress_refused_before_the_windows_advance(
    trained: UncertainPotential, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = molecules(1, 5)[0]
    calc = UBMDCalculator(trained, tau=0.7)
    seen = count_evaluations(calc, monkeypatch)
    with pytest.raises(PropertyNotImplementedError, match="cell has three vectors"):
        calc.get_property("stress", atoms)
    calc.get_property("forces", atoms)
    assert seen == ["full"]


@pytest.mark.parametrize("pbc", [(True, True, False), (False, False, False)], ids=["slab", "box"])
def test_stress_where_the_cell_has_three_vectors(trained: UncertainPotential, pbc: tuple[bool, ...]) -> None:
    """As with EMT and the other calculators of ASE, which have one of a slab, and none without a third vector."""
    slab = crystals(1, 6)[0]
    slab.pbc = pbc
    slab.calc = UBMDCalculator(trained)
    np.testing.assert_allclose(slab.get_forces(), calculate_numerical_forces(slab, 1e-5), atol=1e-7)
    numerical = calculate_numerical_stress(slab, 1e-5)
    np.testing.assert_allclose(slab.get_stress(), numerical, atol=1e-8)
    assert np.abs(numerical).min() > 1e-5
    slab.set_cell([*slab.cell.array[:2], [0, 0, 0]])
    emt = slab.copy()
    emt.calc = EMT()
    for atoms in (slab, emt):
        assert np.isfinite(atoms.get_forces()).all()
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_stress()


@pytest.mark.parametrize(
    "atoms", [molecules(1, 7)[0], crystals(1, 7)[0].repeat((2, 1, 1))], ids=["molecule", "crystal"]
)
def test_skin_along_molecular_dynamics(
    trained: UncertainPotential, atoms: Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = atoms.copy()
    listings: list[float] = []

    def counted(structures: list[Atoms], cutoff: float, **options: object) -> object:
        listings.append(cutoff)
        return collate(structures, cutoff, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "collate", counted)
    atoms.calc = UBMDCalculator(trained, skin=0.6)
    thermalize_momenta(atoms, temperature_K=600, rng=np.random.default_rng(0))
    dynamics = Langevin(
        atoms, 0.5 * units.fs, temperature_K=600, friction=0.02, fixcm=False, rng=np.random.default_rng(1)
    )
    for _ in dynamics.irun(60):
        np.testing.assert_allclose(atoms.get_forces(), direct(trained, atoms).forces, atol=1e-10)
    assert 1 < len(listings) < 20
    before = len(listings)
    atoms.positions[0] += [0.29, 0, 0]
    atoms.get_forces()
    atoms.positions[0] += [5.0, 0, 0]
    np.testing.assert_allclose(atoms.get_forces(), direct(trained, atoms).forces, atol=1e-10)
    assert len(listings) in (before + 1, before + 2)


def test_listed_anew_for_another_cell_or_structure(trained: UncertainPotential) -> None:
    calc = UBMDCalculator(trained, skin=2.0)
    first = crystals(1, 8)[0]
    larger = first.copy()
    larger.set_cell(first.cell.array * 1.05)
    other = first.copy()
    other.numbers = other.numbers[::-1]
    open_ = first.copy()
    open_.pbc = False
    for atoms in (first, larger, other, open_, molecules(1, 8)[0], first):
        np.testing.assert_allclose(calc.get_property("forces", atoms), direct(trained, atoms).forces, atol=1e-10)


def test_energy_is_conserved(trained: UncertainPotential) -> None:
    """The energy of a microcanonical trajectory fluctuates with the square of the time step."""

    def fluctuation(dt: float) -> float:
        atoms = crystals(1, 9)[0].repeat((2, 1, 1))
        atoms.calc = UBMDCalculator(trained, skin=0.5)
        thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(3))
        dynamics = VelocityVerlet(atoms, dt * units.fs)
        energies = [atoms.get_total_energy() for _ in dynamics.irun(round(40 / dt))]
        return float(np.ptp(energies))

    coarse, fine = fluctuation(0.4), fluctuation(0.2)
    assert coarse < 0.01
    assert 3.3 < coarse / fine < 4.7


def test_with_optimiser_and_constant_pressure(trained: UncertainPotential) -> None:
    crystal = crystals(1, 10)[0]
    crystal.calc = UBMDCalculator(trained)
    start = crystal.get_potential_energy()
    BFGS(FrechetCellFilter(crystal), logfile=None).run(fmax=1e-3, steps=10)
    assert crystal.get_potential_energy() < start
    crystal = crystals(1, 10)[0]
    crystal.set_cell(np.diag([3.0, 3.2, 3.4]), scale_atoms=True)
    crystal.calc = UBMDCalculator(trained, tau=0.1, tau_stress=0.1, window=2)
    thermalize_momenta(crystal, temperature_K=100, rng=np.random.default_rng(3))
    dynamics = MelchionnaNPT(
        crystal,
        0.5 * units.fs,
        temperature_K=100,
        externalstress=0.0,
        ttime=20 * units.fs,
        pfactor=(100 * units.fs) ** 2 * 0.5,
    )
    volume = crystal.get_volume()
    dynamics.run(5)
    assert crystal.get_volume() != volume
    assert np.isfinite(crystal.get_stress()).all()


def test_foreign_element(checkpoint: Path) -> None:
    atoms = molecule("CH3Cl")
    atoms.calc = UBMDCalculator(checkpoint)
    with pytest.raises(InputError) as caught:
        atoms.get_potential_energy()
    assert str(caught.value) == (
        f"the structure contains Cl, which {checkpoint} was not trained on (it knows H, C, O); "
        "remove it or train a potential with it"
    )


def test_useless_structures(trained: UncertainPotential) -> None:
    calc = UBMDCalculator(trained)
    atoms = molecules(1, 11)[0]
    calc.get_property("energy", atoms)
    atoms.positions[2, 1] = np.nan
    with pytest.raises(CalculationFailed, match="position of atom 2"):
        calc.get_property("energy", atoms)
    flat = crystals(1, 11)[0]
    flat.set_cell([3, 3, 0])
    with pytest.raises(InputError, match="zero volume"):
        calc.get_property("energy", flat)
    with pytest.raises(InputError, match="no atoms"):
        calc.get_property("energy", Atoms())
    with pytest.raises(InputError, match=r"tau_stress=0\.5 needs a structure"):
        UBMDCalculator(trained, tau_stress=0.5).get_property("energy", molecules(1, 11)[0])


def test_a_diverging_prediction_is_no_result(trained: UncertainPotential) -> None:
    atoms = molecules(1, 12)[0]
    calc = UBMDCalculator(trained, skin=10.0)
    calc.get_property("energy", atoms)
    atoms.positions[1] = atoms.positions[0]  # no direction from one to the other
    for _ in range(2):
        with pytest.raises(CalculationFailed, match="predicts an energy of nan"):
            calc.get_property("energy", atoms)


def test_bad_options(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="does not exist"):
        UBMDCalculator(tmp_path / "missing.ckpt")
    with pytest.raises(InputError, match="skin"):
        UBMDCalculator(checkpoint, skin=-1.0)
    with pytest.raises(InputError, match="tau must be"):
        UBMDCalculator(checkpoint, tau=-1.0)
    with pytest.raises(InputError, match="device=cuda is not available"):
        UBMDCalculator(checkpoint, device="cuda")
    with pytest.raises(InputError, match="device=gpu is no device"):
        UBMDCalculator(checkpoint, device="gpu")
    assert torch_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("tau", [0.0, 0.5])
@pytest.mark.parametrize("atoms", [molecules(1, 0)[0], crystals(1, 0)[0]], ids=["molecule", "crystal"])
def test_results_have_the_names_that_ase_accepts(
    trained: UncertainPotential, atoms: Atoms, tau: float, tmp_path: Path
) -> None:
    """Whatever ASE does with results works after uncertainties were asked for: export, copies, writers, sums."""
    atoms = atoms.copy()
    atoms.calc = calc = UBMDCalculator(trained, tau=tau)
    forces = atoms.get_forces()
    atomic = calc.get_property("atomic_uncertainty", atoms)
    assert calc.export_properties()["energy"] == atoms.get_potential_energy()
    kept = SinglePointCalculator(atoms, **calc.results)
    np.testing.assert_array_equal(kept.get_property("forces", atoms), forces)
    atoms.arrays["atomic_uncertainty"] = atomic
    atoms.info["uncertainty"] = calc.uncertainty
    for name in ("it.extxyz", "it.traj", "it.json", "it.db"):
        ase.io.write(tmp_path / name, atoms)
        found = ase.io.read(tmp_path / name)
        np.testing.assert_allclose(found.get_forces(), forces, atol=1e-7)
        np.testing.assert_allclose(found.get_potential_energy(), atoms.get_potential_energy(), atol=1e-7)
    found = ase.io.read(tmp_path / "it.extxyz")
    np.testing.assert_allclose(found.arrays["atomic_uncertainty"], atomic, atol=1e-7)
    assert found.info["uncertainty"] == pytest.approx(calc.uncertainty)
    if atoms.cell.rank == 3:
        np.testing.assert_allclose(found.get_stress(), atoms.get_stress(), atol=1e-7)
    with Trajectory(tmp_path / "written.traj", "w", atoms) as file:
        file.write()
    if not tau:
        energies = atoms.get_potential_energies()
        for name in ("all.extxyz", "all.traj", "all.json"):  # the table of an ase.db has no room for them
            ase.io.write(tmp_path / name, atoms)
            found = ase.io.read(tmp_path / name)
            np.testing.assert_allclose(found.get_potential_energies(), energies, atol=1e-7)
        twice = LinearCombinationCalculator([calc, UBMDCalculator(trained)], [1.0, 1.0])
        np.testing.assert_allclose(twice.get_property("forces", atoms), 2 * forces, atol=1e-10)


def test_uncertainties_belong_to_the_structure(trained: UncertainPotential) -> None:
    """They are those of the structure asked about, whatever was evaluated before, also where something failed."""
    first, second = molecules(2, 13)
    calc = UBMDCalculator(trained)
    with pytest.raises(InputError, match="no structure was evaluated yet"):
        calc.get_property("uncertainty")
    one, two = (calc.get_property("uncertainty", a) for a in (first, second))
    assert one != two
    assert calc.get_property("uncertainty") == two == calc.uncertainty
    assert calc.get_property("uncertainty", first, allow_calculation=False) is None
    calc.get_property("energy", first)
    assert calc.uncertainty is None, "the structure is another one now"
    assert calc.get_property("uncertainty", first) == one
    broken = first.copy()
    broken.positions[0] = np.nan
    with pytest.raises(CalculationFailed):
        calc.get_property("energy", broken)
    assert calc.uncertainty is None
    calc.get_property("atomic_uncertainty", first)[:] = 0
    assert calc.get_property("atomic_uncertainty", first).min() > 0
    calc.reset()
    assert calc.atomic_uncertainty is None
