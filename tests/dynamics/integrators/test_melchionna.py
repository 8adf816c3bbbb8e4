from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.md.melchionna import MelchionnaNPT

from tests.dynamics.npt_toys import CELL, TURN, AseWalkers, advance, alloy, ase_atoms, last, started
from tests.dynamics.walker_toys import Toy, gas, walkers
from ubmd.dynamics.integrators.melchionna import Melchionna
from ubmd.dynamics.stopping import StoppingRules, StopReason
from ubmd.dynamics.walkers import run_walkers
from ubmd.errors import InputError
from ubmd.units import GPA, MPA

DT, STEPS, KELVIN = 2.0, 100, 600.0
SETTINGS = {"thermostat_time": 40.0, "barostat_time": 120.0, "bulk_modulus": 60.0}
MASKS = {"full": None, "orthorhombic": np.eye(3)}


def ase_melchionna(atoms: Atoms, pressure: float, kind: str, steps: int = STEPS) -> MelchionnaNPT:
    dynamics = MelchionnaNPT(
        atoms,
        DT * units.fs,
        temperature_K=KELVIN,
        externalstress=pressure * MPA,
        ttime=SETTINGS["thermostat_time"] * units.fs,
        pfactor=(SETTINGS["barostat_time"] * units.fs) ** 2 * SETTINGS["bulk_modulus"] * GPA,
        mask=MASKS.get(kind),
    )
    if kind == "isotropic":
        dynamics.set_fraction_traceless(0)
    dynamics.run(steps)
    return dynamics


@pytest.mark.parametrize("cell", [CELL, CELL.T, np.diag([5.2, 5.0, 5.4])], ids=["upper", "lower", "box"])
@pytest.mark.parametrize("kind", ["full", "orthorhombic", "isotropic"])
def test_trajectory_is_ases(cell: np.ndarray, kind: str) -> None:
    structure, pressure = alloy(cell), 900.0
    start, potential = started([structure], KELVIN), AseWalkers()
    integrator = Melchionna(DT, KELVIN, pressure, cell=kind, **SETTINGS)
    end = last(advance(start, potential, integrator, STEPS))
    assert potential.asked == 1 + STEPS
    atoms = ase_atoms(structure, start.momenta)
    dynamics = ase_melchionna(atoms, pressure, kind)
    assert np.abs(atoms.cell[:] - cell).max() > 0.02  # otherwise agreement would mean little
    np.testing.assert_allclose(end.batch.cell[0].numpy(), atoms.cell[:], atol=1e-8, rtol=0)
    np.testing.assert_allclose(end.batch.positions.numpy(), atoms.positions, atol=1e-8, rtol=0)
    np.testing.assert_allclose(end.momenta.numpy(), atoms.get_momenta() * units.fs, atol=1e-8, rtol=0)
    np.testing.assert_allclose(end.extended["friction"][0], dynamics.zeta * units.fs, atol=1e-10)
    np.testing.assert_allclose(end.extended["strain_rate"][0], dynamics.eta * units.fs, atol=1e-10)


@pytest.mark.parametrize("axes", [TURN, -TURN, TURN * [[1.0], [-1.0], [1.0]]], ids=["turned", "mirrored", "reflected"])
def test_any_orientation_and_handedness(axes: np.ndarray) -> None:
    # ASE's is restricted to triangular, right-handed cells
    structure = alloy()
    turned = Atoms(structure.numbers, structure.positions @ axes, cell=structure.cell[:] @ axes, pbc=True)
    start = started([structure], KELVIN)
    momenta = start.momenta @ torch.as_tensor(axes)
    end = last(advance(started([turned], KELVIN).replace(momenta=momenta), AseWalkers(), Melchionna(DT), 50))
    expected = last(advance(start, AseWalkers(), Melchionna(DT), 50))
    np.testing.assert_allclose(end.batch.cell[0].numpy(), expected.batch.cell[0].numpy() @ axes, atol=1e-9)
    np.testing.assert_allclose(end.batch.positions.numpy(), expected.batch.positions.numpy() @ axes, atol=1e-9)


def test_each_walker_has_its_temperature_and_pressure() -> None:
    structures, pressures, kelvins = [alloy(seed=i) for i in range(4)], [2500.0, -2500.0], [300.0, 300.0, 900.0, 900.0]
    start = started(structures, kelvins)
    integrator = Melchionna(DT, kelvins, pressures, cell="isotropic", **SETTINGS)
    together = last(advance(start, AseWalkers(), integrator, 30))
    for i in range(4):
        alone = start.select(torch.tensor([i]))
        own = Melchionna(DT, 300.0, pressures[i % 2], cell="isotropic", **SETTINGS)
        single = last(advance(alone, AseWalkers(), own, 30))
        for name in ("momenta", "forces"):
            part = getattr(together.select(torch.tensor([i])), name)
            torch.testing.assert_close(getattr(single, name), part, atol=1e-12, rtol=0)
        torch.testing.assert_close(single.batch.cell[0], together.batch.cell[i], atol=1e-12, rtol=0)
    # identities, not places in the batch, say whose pressure is whose
    half = start.select(torch.tensor([3, 1]))
    torch.testing.assert_close(last(advance(half, AseWalkers(), integrator, 30)).batch.cell[0], together.batch.cell[3])


def drift(dt: float, kind: str, time: float = 120.0) -> float:
    """Largest deviation of what is conserved, in terms of the standard deviation of the potential energy."""
    integrator = Melchionna(dt, KELVIN, 900.0, cell=kind, **SETTINGS)
    start = started([alloy(), alloy(seed=1)], KELVIN)
    states = list(advance(start, AseWalkers(), integrator, round(time / dt)))
    conserved = torch.stack([integrator.prepare(s).conserved_energy(s) for s in states])
    energies = torch.stack([s.energy for s in states if s.energy is not None])
    return float(((conserved - conserved[0]).abs().amax(0) / energies.std(0)).max())


@pytest.mark.parametrize("kind", ["full", "orthorhombic", "isotropic"])
def test_conserves_its_energy_to_second_order(kind: str) -> None:
    coarse, fine = drift(2.0, kind), drift(1.0, kind)
    assert fine < 0.1
    assert 3.2 < coarse / fine < 4.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_force_on_all_atoms_does_nothing(dtype: torch.dtype) -> None:
    # species weights of a bias make one; without friction the centre of mass would run away
    class Pushed(AseWalkers):
        def __call__(self, *args, **options):
            found = super().__call__(*args, **options)
            weights = torch.as_tensor(alloy().get_masses()).to(found.forces)[:, None] / 100
            return replace(found, forces=found.forces + weights)

    start = started([alloy()], KELVIN, dtype)
    free, pushed = (last(advance(start, p, Melchionna(DT), 30)) for p in (AseWalkers(), Pushed()))
    assert pushed.momenta.dtype == pushed.batch.cell.dtype == pushed.batch.positions.dtype == dtype
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(pushed.batch.positions, free.batch.positions, atol=tolerance, rtol=0)
    assert pushed.momenta.sum(0).abs().max() < tolerance


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"dt": 0.0}, "dt"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": []}, "temperature"),
        ({"pressure": [0.0, float("nan")]}, "pressure"),
        ({"pressure": ["high"]}, "pressure"),
        ({"thermostat_time": 0.0}, "thermostat_time"),
        ({"barostat_time": float("inf")}, "barostat_time"),
        ({"bulk_modulus": -10.0}, "bulk_modulus"),
        ({"cell": "cubic"}, "isotropic, orthorhombic, full"),
    ],
)
def test_refuses_bad_settings(wrong: dict, word: str) -> None:
    with pytest.raises(InputError, match=word):
        Melchionna(**wrong)


def test_refuses_walkers_without_a_temperature_of_their_own() -> None:
    with pytest.raises(InputError, match="two atoms"):
        Melchionna().prepare(started([Atoms("Cu", cell=[3, 3, 3], pbc=True)], KELVIN))
    with pytest.raises(InputError, match="one size"):
        Melchionna().prepare(started([alloy(), alloy().repeat((2, 1, 1))], KELVIN))


def test_few_rebuilds_of_the_lists_equal_many() -> None:
    start = walkers([gas(1), gas(2)], temperature=2000.0, cutoff=3.2)
    toy, rules = Toy(cutoff=3.2, epsilon=0.1, sigma=2.4, tether=0.0), StoppingRules(None, max_steps=100)
    integrator = Melchionna(1.0, 2000.0, [20000.0, -5000.0], barostat_time=200.0)
    lazy = run_walkers(start, toy, integrator, rules, frame_interval=50, skin=1.0)
    eager = run_walkers(start, toy, integrator, rules, frame_interval=50, skin=0.0)
    np.testing.assert_allclose(lazy.positions, eager.positions, atol=1e-7)
    np.testing.assert_allclose(lazy.cell, eager.cell, atol=1e-7)
    volumes = np.abs(np.linalg.det(lazy.cell[[1, 3]])) / gas().cell.volume
    assert volumes[0] < 0.85
    assert volumes[1] > 1.15


def test_a_walker_whose_cell_bursts_stops_alone() -> None:
    structures = [gas(1), gas(2), gas(3)]
    toy, rules = Toy(cutoff=3.2, epsilon=0.1, sigma=2.4, tether=0.0), StoppingRules(None, max_steps=40)

    def explore(pressures: list[float], barostat_time: float):
        start = walkers(structures, temperature=1000.0, cutoff=3.2)
        integrator = Melchionna(1.0, 1000.0, pressures, barostat_time=barostat_time)
        return run_walkers(start, toy, integrator, rules, frame_interval=40, skin=0.5)

    found, calm = explore([0.0, 1e7, 0.0], 10.0), explore([0.0, 0.0, 0.0], 10.0)
    assert found.reasons[[0, 2]].tolist() == [StopReason.MAX_STEPS] * 2
    assert found.reasons[1] in (StopReason.CELL, StopReason.NAN)
    assert found.steps[1] < 5
    np.testing.assert_array_equal(found.positions, calm.positions[[0, 2]])
    np.testing.assert_array_equal(found.cell, calm.cell[[0, 2]])
    grown = explore([0.0, -3e5, 0.0], 100.0)
    assert grown.reasons.tolist() == [StopReason.MAX_STEPS, StopReason.CELL, StopReason.MAX_STEPS]
    assert grown.walker.tolist() == [0, 2]
