from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms

from tests.interfaces.test_ase import crystals, molecules, save
from ubmd.bias.biased import BiasedPotential
from ubmd.errors import InputError
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.uncertainty.checkpoint import load_potential
from ubmd.uncertainty.potential import UncertainPotential

ts = pytest.importorskip("torch_sim", reason="torch-sim is not installed: pip install torch-sim-atomistic")
torch_sim = pytest.importorskip("ubmd.interfaces.torch_sim")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> UncertainPotential:
    return load_potential(save(tmp_path_factory.mktemp("potential") / "model.ckpt", torch.float64))


def several(kind: str) -> list[Atoms]:
    """Systems of different sizes."""
    if kind == "molecules":
        return [*molecules(2, 0), molecules(1, 1)[0][:3]]
    return [*crystals(2, 0), crystals(1, 1)[0].repeat((1, 2, 1))]


@pytest.mark.parametrize("kind", ["molecules", "crystals"])
@pytest.mark.parametrize("tau", [0.0, 2.0])
def test_a_batch_equals_the_calculator(trained: UncertainPotential, kind: str, tau: float) -> None:
    systems = several(kind)
    strengths = {"tau": tau, "tau_stress": tau * (kind == "crystals")}
    model = torch_sim.TorchSimModel(trained, uncertainties=True, **strengths)
    found = model(ts.initialize_state(systems, CPU, torch.float64))
    start = 0
    for number, atoms in enumerate(systems):
        atoms.calc = calc = UBMDCalculator(trained, rescale=False, **strengths)
        part = slice(start, start := start + len(atoms))
        uncertainty = calc.get_property("uncertainty", atoms)
        np.testing.assert_allclose(found["energy"][number], atoms.get_potential_energy(), rtol=1e-12)
        np.testing.assert_allclose(found["forces"][part], atoms.get_forces(), atol=1e-12)
        np.testing.assert_allclose(found["uncertainty"][number], uncertainty, rtol=1e-10)
        np.testing.assert_allclose(found["atomic_uncertainty"][part], calc.atomic_uncertainty, rtol=1e-10)
        if kind == "crystals":
            np.testing.assert_allclose(found["stress"][number], atoms.get_stress(voigt=False), atol=1e-12)
    assert ("stress" in found) == (kind == "crystals")


def test_neighbours_are_listed_where_something_moved(trained: UncertainPotential) -> None:
    """Steps within the skin, cells that change, other systems in the same places: always as listed anew."""
    model = torch_sim.TorchSimModel(trained, skin=0.8)
    atoms = crystals(1, 0)[0]
    listed, rng = [], np.random.default_rng(0)
    for step in range(30):
        atoms.rattle(0.03, rng=rng)
        if step > 10:
            atoms.set_cell(atoms.cell * [1.0, 1.004, 1.0], scale_atoms=True)
        if step == 25:
            atoms.numbers[:2] = atoms.numbers[:2][::-1]
        found = model(ts.initialize_state([atoms], CPU, torch.float64))
        atoms.calc = UBMDCalculator(trained)
        np.testing.assert_allclose(found["forces"], atoms.get_forces(), atol=1e-11)
        listed.append(model._listed)
    changes = sum(a is not b for a, b in itertools.pairwise(listed))
    assert 1 < changes < 20


def test_energy_is_conserved(trained: UncertainPotential) -> None:
    """Of the biased potential, which is an energy like others here."""
    model = torch_sim.TorchSimModel(trained, tau=2.0)
    state = ts.initialize_state(several("crystals"), CPU, torch.float64)
    units = ts.units.MetalUnits
    dt, kT = (torch.tensor(x, dtype=torch.float64) for x in (0.00025 * units.time, 300 * units.temperature))
    if hasattr(ts, "nve_init"):  # from version 0.4 on
        state, step = ts.nve_init(state, model, kT=kT, seed=1), lambda s: ts.nve_step(s, model, dt=dt)
    else:
        begin, step = ts.nve(model, dt=dt, kT=kT, seed=1)
        state = begin(state)
    potential, total = [], []
    for _ in range(60):
        state = step(state)
        kinetic = ts.calc_kinetic_energy(masses=state.masses, momenta=state.momenta, system_idx=state.system_idx)
        potential.append(state.energy.numpy().copy())
        total.append((state.energy + kinetic).numpy())
    assert (np.ptp(potential, axis=0) > 1e-2).all()
    assert (np.ptp(total, axis=0) < 2e-2 * np.ptp(potential, axis=0)).all()


def test_what_is_refused(trained: UncertainPotential) -> None:
    with pytest.raises(InputError, match="no memory; use rescale=False and every=1"):
        torch_sim.TorchSimModel(BiasedPotential(trained.potential, trained.uncertainty, 0.25))
    model = torch_sim.TorchSimModel(trained)
    with pytest.raises(InputError, match="a system contains N, which the potential was not trained on"):
        model(ts.initialize_state([Atoms("N")], CPU, torch.float64))
    state = dict(vars(ts.initialize_state(crystals(1, 0), CPU, torch.float64)))
    with pytest.raises(InputError, match="periodic in three directions or in none"):
        model(state | {"pbc": torch.tensor([True, True, False])})
