"""Which volumes the integrators at constant pressure sample: an ideal gas, where they are known, and copper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from tests.dynamics.npt_toys import AseWalkers, advance, last, started
from ubmd.data.batch import AtomicBatch, collate
from ubmd.dynamics.integrators.barostat import allowed
from ubmd.dynamics.integrators.melchionna import Melchionna
from ubmd.dynamics.integrators.mtk import MTK
from ubmd.dynamics.state import WalkerState, evaluate, initial_state
from ubmd.models.potential import Memory, Prediction
from ubmd.observables.autocorrelation import effective_sample_size
from ubmd.units import ACCELERATION, GPA, KB, MPA

N_ATOMS, N_GASES, KELVIN, PRESSURE, DT = 4, 4000, 300.0, 100.0, 2.0
TIMES = {"thermostat_time": 60.0, "barostat_time": 80.0}
KT = KB * KELVIN
SHAPES = torch.tensor([[1.0, 0.3, -0.2], [0.1, 1.1, 0.4], [0.2, -0.3, 0.9]], dtype=torch.float64)


class NoForces:
    cutoff = 1.0

    def __call__(self, batch: AtomicBatch, memory: Memory | None = None, *, stress: bool = False) -> Prediction:
        energy = torch.zeros(batch.n_systems, dtype=torch.float64)
        return Prediction(energy, torch.zeros_like(batch.positions), torch.zeros_like(batch.cell))


def gases(power: int) -> tuple[WalkerState, np.random.Generator]:
    """Ideal gases with Maxwell-Boltzmann momenta and volumes from V^(power - 1) exp(-p V / kT), alike in shape."""
    random = np.random.default_rng(7)
    volumes = torch.as_tensor(random.gamma(power, KT / (PRESSURE * MPA), size=N_GASES))
    shape = SHAPES / torch.linalg.det(SHAPES) ** (1 / 3)
    batch = collate([Atoms(f"C{N_ATOMS}", positions=np.zeros((N_ATOMS, 3)), cell=np.eye(3), pbc=True)], 0.1)
    batch = batch.to(torch.float64).select(torch.zeros(N_GASES, dtype=torch.int64))
    batch = batch.replace(cell=volumes[:, None, None] ** (1 / 3) * shape)
    return evaluate(initial_state(batch, temperature=KELVIN, seeds=range(N_GASES)), NoForces(), stress=True), random


def rates(frame: Tensor, inertia: float, kind: str, random: np.random.Generator, *, triangular: bool) -> Tensor:
    """Strain rates from exp(-inertia |rate|² / 2 kT) over the matrices that the cell may follow."""
    normal = torch.as_tensor(random.normal(size=(N_GASES, 3, 3)))
    if kind == "isotropic":
        # the mean of three normal numbers has a third of their variance, as 3 rate² in the exponent asks for
        return (KT / inertia) ** 0.5 * allowed(normal, kind, frame, triangular=triangular)
    if triangular or kind == "orthorhombic":
        inside = normal.triu() if kind == "full" else torch.diag_embed(normal.diagonal(dim1=1, dim2=2))
        return (KT / inertia) ** 0.5 * frame.mT @ inside @ frame
    return (KT / inertia) ** 0.5 * 0.5 * (normal + normal.mT)


def equilibrated_melchionna(kind: str) -> tuple[Melchionna, WalkerState]:
    """Gases in the ensemble that the integrator is to keep, at one inertia of the cell for all."""
    integrator = Melchionna(DT, KELVIN, PRESSURE, bulk_modulus=0.2, cell=kind, **TIMES)
    state, random = gases(N_ATOMS - 1)
    step = integrator.prepare(state)
    state = step.started(state)
    own, volume = state.extended, N_ATOMS * KT / (PRESSURE * MPA)
    inertia = volume * GPA * integrator.bulk_modulus * integrator.barostat_time**2
    rate = rates(own["frame"], inertia, kind, random, triangular=True)
    spread = 1 / np.sqrt(3 * N_ATOMS) / integrator.thermostat_time
    friction = spread * torch.as_tensor(random.normal(size=N_GASES))
    own |= {"volume": torch.full_like(friction, volume), "strain_rate": rate, "friction": friction}
    # centred differences begin a step earlier
    damping = DT * (rate + 0.5 * friction[:, None, None] * torch.eye(3))
    own["drift"] -= own["drift"] @ damping
    own["cell_past"] = own["cell"] - DT * own["cell"] @ rate
    own["strain_rate_past"] = rate - DT * step._strain_acceleration(state)
    own["friction_past"] = friction - DT * step._friction_rate(state)
    return integrator, state


def equilibrated_mtk(kind: str) -> tuple[MTK, WalkerState]:
    """The same for Martyna-Tobias-Klein dynamics."""
    integrator = MTK(DT, KELVIN, PRESSURE, cell=kind, **TIMES)
    state, random = gases(N_ATOMS)
    state = integrator.prepare(state).started(state)
    own = state.extended
    freedoms = torch.tensor([3 * N_ATOMS - 3, {"isotropic": 1, "orthorhombic": 3, "full": 6}[kind]])
    inertia = N_ATOMS * KT * integrator.barostat_time**2
    own["strain_rate"] = rates(own["frame"], inertia, kind, random, triangular=False)
    links = torch.as_tensor(random.normal(size=own["chain_rates"].shape)) / torch.tensor(list(TIMES.values()))[:, None]
    links[..., 0] /= freedoms.sqrt()
    own["chain_rates"] = links
    return integrator, state


def volumes(state: WalkerState) -> np.ndarray:
    return torch.linalg.det(state.batch.cell).abs().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "orthorhombic", "isotropic"])
@pytest.mark.parametrize(
    ("equilibrated", "power"), [(equilibrated_melchionna, N_ATOMS - 1), (equilibrated_mtk, N_ATOMS)]
)
def test_an_ideal_gas_keeps_its_ensemble(kind: str, equilibrated, power: int) -> None:
    # V^(power - 1) exp(-p V / kT): mean power kT/p, variance power (kT/p)²; four atoms tell N - 1, N and N + 1 apart
    integrator, state = equilibrated(kind)
    before = volumes(state)
    end = last(advance(state, NoForces(), integrator, 200))
    found = volumes(end) * PRESSURE * MPA / KT
    assert abs(np.corrcoef(before, found)[0, 1]) < 0.5  # they have moved on
    assert abs(found.mean() - power) < 4 * np.sqrt(power / N_GASES)
    assert abs(found.var() - power) < 4 * power * np.sqrt((2 + 6 / power) / N_GASES)
    twice_kinetic = (end.momenta.square().sum(1) / end.masses).view(N_GASES, -1).sum(1) / (KT * ACCELERATION)
    assert abs(float(twice_kinetic.mean()) - 9) < 4 * np.sqrt(18 / N_GASES)


ASE_COPPER = {"mean": (384.954, 0.115), "variance": (28.28, 3.04)}
"""Å³ and Å⁶ with standard errors, of the volume of 32 atoms at 600 K and no pressure: what
``scripts/copper_npt_reference.py`` prints, six trajectories of 20 ps by ASE 3.29's EMT and MelchionnaNPT alone."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "integrator",
    [
        Melchionna(5.0, 600.0, 0.0, thermostat_time=30.0, barostat_time=50.0, bulk_modulus=100.0),
        MTK(5.0, 600.0, 0.0, thermostat_time=50.0, barostat_time=500.0),
    ],
)
def test_copper_has_the_volume_and_fluctuation_that_ase_finds(integrator: Melchionna | MTK) -> None:
    crystal = bulk("Cu", "fcc", a=3.637, cubic=True).repeat(2)
    crystals = [crystal.copy() for _ in range(3)]
    for seed, atoms in enumerate(crystals):
        atoms.rattle(0.1, seed=seed)  # about the thermal displacements, or the cell would ring for long
    states = advance(started(crystals, 600.0), AseWalkers(), integrator, 1200)
    found = np.array([volumes(state) for state in states])[300:].T
    mean, squares = found.mean(), (found - found.mean()) ** 2
    for name, value, samples in (("mean", mean, found), ("variance", squares.mean(), squares)):
        error = samples.std() / np.sqrt(effective_sample_size(list(samples)))
        expected, its_error = ASE_COPPER[name]
        print(f"{type(integrator).__name__} {name}: {value:.3f} ± {error:.3f}, ASE {expected} ± {its_error}")
        assert error < (0.6 if name == "mean" else 0.35 * expected)
        assert abs(value - expected) < 4 * np.hypot(error, its_error)
