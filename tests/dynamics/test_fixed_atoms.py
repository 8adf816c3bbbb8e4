"""Fixed atoms and masses of the starting structures in every way to move."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms

from tests.dynamics.integrators.test_langevin import STEPS, Springs, ase_langevin, plain_toy, run
from tests.dynamics.walker_toys import Toy, cluster, gas
from ubmd.data.batch import collate
from ubmd.dynamics.adversarial import AdamDescent, AdversarialExploration
from ubmd.dynamics.connectivity import rotations
from ubmd.dynamics.exploration import frames_to_atoms
from ubmd.dynamics.explore import Explorer, WalkerExploration
from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.integrators.melchionna import Melchionna
from ubmd.dynamics.integrators.montecarlo import MonteCarlo, MonteCarloExploration
from ubmd.dynamics.integrators.mtk import MTK
from ubmd.dynamics.noise import WalkerNoise
from ubmd.dynamics.perturbation import PerturbationExploration, RandomPerturbation
from ubmd.dynamics.state import WalkerState, evaluate, initial_state, kinetic_temperature
from ubmd.dynamics.stopping import StoppingRules, StopReason, stop_reasons
from ubmd.dynamics.trajectory import read_trajectory, write_trajectory
from ubmd.errors import InputError
from ubmd.units import ACCELERATION, KB

FIXED = [0, 3, 4]


def start(seed: int = 0) -> Atoms:
    """Six atoms, three of them fixed at places that float32 has not, one an isotope."""
    atoms = cluster(6, seed)
    atoms.set_constraint(FixAtoms(FIXED))
    masses = atoms.get_masses()
    masses[1] = 14.003
    atoms.set_masses(masses)
    atoms.set_initial_charges([1.0, 0, 0, 0, 0, 0])
    return atoms


OPTIONS = {"n_walkers": 3, "stopping": StoppingRules(None, 40, min_distance=None), "frame_interval": 10}
EXPLORERS = {
    "langevin": WalkerExploration(integrator=Langevin(dt=1.0), **OPTIONS),
    "attack": AdversarialExploration(integrator=AdamDescent(0.02), **OPTIONS),
    "monte carlo": MonteCarloExploration(integrator=MonteCarlo(torsion_fraction=0.0), **OPTIONS),
    "perturbation": PerturbationExploration(integrator=RandomPerturbation(0.05), **OPTIONS),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", EXPLORERS)
def test_fixed_atoms_stay_bit_by_bit(way: str, dtype: torch.dtype, tmp_path: Path) -> None:
    starts = [start(0), start(1)]
    found = EXPLORERS[way](Toy(), starts, seed=1, round_index=0, dtype=dtype)
    write_trajectory(tmp_path / "t.h5", found)
    frames = frames_to_atoms(read_trajectory(tmp_path / "t.h5"))
    assert len(frames) == 12
    for frame in frames:
        before = starts[frame.info["walker"] % 2]
        np.testing.assert_array_equal(frame.positions[FIXED], before.positions[FIXED])
        np.testing.assert_array_equal(frame.constraints[0].index, FIXED)
        np.testing.assert_array_equal(frame.get_masses(), before.get_masses())
        np.testing.assert_array_equal(frame.get_initial_charges(), before.get_initial_charges())
    free = [i for i in range(6) if i not in FIXED]
    last = [frame for frame in frames if frame.info["step"] == 40]
    moved = np.array([frame.positions[free] - starts[frame.info["walker"] % 2].positions[free] for frame in last])
    assert (np.abs(moved) > 1e-4).any(axis=(0, 2)).all(), "every free atom moves"


def state_of(atoms: Atoms, kelvin: float, seeds: list[int], cutoff: float = 30.0):
    batch = collate([atoms] * len(seeds), cutoff, dtype=torch.float64)
    fixed = torch.zeros(len(atoms), dtype=torch.bool)
    fixed[atoms.constraints[0].index] = True
    masses = torch.as_tensor(atoms.get_masses()).repeat(len(seeds))
    return initial_state(batch, temperature=kelvin, seeds=seeds, masses=masses, fixed=fixed.repeat(len(seeds)))


def test_langevin_follows_ase_with_fixed_atoms_and_isotopes() -> None:
    structure = start()
    state = state_of(structure, 600.0, [5])
    end, noise = run(state, plain_toy(), STEPS)
    expected = ase_langevin(structure, state.momenta, 600.0, noise)
    assert np.abs(expected.positions - structure.positions).max() > 0.3
    np.testing.assert_allclose(end.batch.positions.numpy(), expected.positions, atol=1e-8, rtol=0)
    # ASE leaves out what its constraints hold too
    assert kinetic_temperature(end)[0] == pytest.approx(expected.get_temperature())


def test_free_atoms_have_the_temperature_and_isotopes_the_speed() -> None:
    """Equipartition: <K> = 3/2 N_free k_B T and <v²> = 3 k_B T / m, with half of the atoms fixed."""
    atoms = Atoms("C20", positions=np.zeros((20, 3)), masses=[12.0] * 10 + [12.0] * 5 + [48.0] * 5)
    atoms.set_constraint(FixAtoms(range(10)))
    potential, kelvin = Springs(2.0), 400.0
    state = state_of(atoms, kelvin, list(range(16)), cutoff=1.0)
    start_temperature = float(kinetic_temperature(state).mean())
    assert start_temperature == pytest.approx(kelvin, rel=0.15)
    assert state.momenta.view(16, 20, 3)[:, :10].abs().max() == 0
    state = evaluate(state.replace(batch=state.batch.replace(mask=torch.zeros_like(state.batch.mask))), potential)
    step = Langevin(dt=1.0, friction=0.05).prepare(state)
    source = WalkerNoise(state.seed, state.step, state.batch.n_atoms, dtype=torch.float64, device="cpu")
    temperature, speed = [], []
    for i in range(2000):
        noise = source.next()
        state = step.first_half(state, noise)
        state = step.second_half(state, potential(state.batch), noise)
        if i >= 200:
            temperature.append(kinetic_temperature(state))
            speed.append((state.momenta / state.masses[:, None]).square().mean(1).view(16, 20).mean(0))
    assert torch.stack(temperature).mean() == pytest.approx(kelvin, rel=0.01)
    squares = torch.stack(speed).mean(0) / ACCELERATION
    assert squares[:10].abs().max() == 0
    assert squares[10:15].mean() == pytest.approx(KB * kelvin / 12.0, rel=0.02)
    assert squares[15:].mean() == pytest.approx(KB * kelvin / 48.0, rel=0.02)


def test_a_hot_free_atom_is_noticed_among_fixed_ones() -> None:
    atoms = cluster(6)
    atoms.set_constraint(FixAtoms(range(5)))
    state = state_of(atoms, 300.0, [1])
    rules = StoppingRules(None, max_temperature_factor=2.0, min_distance=None)
    hot = state.replace(momenta=state.momenta * (6.1 * 300 / kinetic_temperature(state)).sqrt())
    assert stop_reasons(state.replace(momenta=state.momenta * 0), rules).tolist() == [0]
    assert stop_reasons(hot, rules).tolist() == [3]


class Unsure(Toy):
    """The toy with a large and growing uncertainty of atom 0."""

    def __call__(self, *args, **options):
        found = super().__call__(*args, **options)
        atomic = found.atomic_uncertainty.clone()
        atomic.view(-1, 6)[:, 0] = 1e6
        return replace(found, atomic_uncertainty=atomic)


def test_uncertainty_of_a_fixed_atom_stops_no_walker() -> None:
    rules = StoppingRules(10.0, 20, min_distance=None)
    explorer = WalkerExploration(integrator=Langevin(dt=1.0), **OPTIONS | {"stopping": rules})
    atoms = start()
    found = explorer(Unsure(), [atoms], seed=1, round_index=0)
    assert found.reasons.tolist() == [StopReason.MAX_STEPS] * 3
    assert (found.max_uncertainty < 10).all()
    frames = frames_to_atoms(found)
    assert all(f.arrays["atomic_uncertainty"][0] == 1e6 and f.info["max_atomic_uncertainty"] < 10 for f in frames)
    atoms.set_constraint(FixAtoms([1]))
    assert explorer(Unsure(), [atoms], seed=1, round_index=0).reasons.tolist() == [StopReason.UNCERTAINTY] * 3


def test_saved_walkers_keep_their_fixed_atoms() -> None:
    state = state_of(start(), 300.0, [1, 2])
    again = WalkerState.from_state_dict(state.state_dict()).select(torch.tensor([1]))
    assert again.fixed is not None
    assert again.fixed.nonzero()[:, 0].tolist() == FIXED
    earlier = state.state_dict()
    earlier["fixed"] = earlier["batch"].pop("fixed")
    assert torch.equal(WalkerState.from_state_dict(earlier).batch.fixed, state.batch.fixed)


def test_momentum_is_left_where_fixed_atoms_take_it_up() -> None:
    state = state_of(start(), 300.0, [1])
    assert state.momenta.sum(0).norm() > 1e-3


def test_torsions_turn_the_end_that_is_free() -> None:
    chain = Atoms("C6", positions=[[1.4 * i, 0.4 * (i % 2), 0.1 * (i % 3)] for i in range(6)])
    assert rotations(chain, [[1, 2]])[0].moved == (0,)
    chain.set_constraint(FixAtoms([0]))
    (turn,) = rotations(chain, [[1, 2]])
    assert turn.axis == (1, 2)
    assert turn.moved == (3, 4, 5)
    chain.set_constraint(FixAtoms([0, 5]))
    with pytest.raises(InputError, match="nothing that can turn"):
        rotations(chain, [[1, 2]])


@pytest.mark.parametrize("integrator", [Melchionna(), MTK()])
def test_constant_pressure_is_refused(integrator) -> None:
    atoms = gas()
    atoms.set_constraint(FixAtoms([0]))
    explorer = WalkerExploration(integrator=integrator, **OPTIONS)
    with pytest.raises(InputError, match=r"structure has 1 fixed atoms.*dynamics=langevin"):
        explorer.check_start(atoms, "structure")
    with pytest.raises(InputError, match="constant pressure would move fixed atoms"):
        explorer(Toy(), [atoms], seed=0, round_index=0, dtype=torch.float64)


def test_strain_is_refused() -> None:
    atoms = gas()
    atoms.set_constraint(FixAtoms([0]))
    explorer = PerturbationExploration(integrator=RandomPerturbation(0.05, strain=0.02), **OPTIONS)
    with pytest.raises(InputError, match="fixed atoms"):
        explorer.check_start(atoms, "structure")
    with pytest.raises(InputError, match="would move fixed atoms"):
        explorer(Toy(), [atoms], seed=0, round_index=0, dtype=torch.float64)


@pytest.mark.parametrize("way", EXPLORERS)
def test_nothing_to_move_is_refused(way: str) -> None:
    atoms = cluster(6)
    atoms.set_constraint(FixAtoms(range(6)))
    with pytest.raises(InputError, match="all 6 atoms of structure 0 are fixed"):
        EXPLORERS[way].check_start(atoms, "structure 0")
    with pytest.raises(InputError, match="all atoms of walker 0 are fixed"):
        EXPLORERS[way](Toy(), [atoms], seed=0, round_index=0)


def test_walkers_must_be_fixed_alike() -> None:
    other = start()
    other.set_constraint(FixAtoms([1]))
    with pytest.raises(InputError, match="same fixed atoms"):
        EXPLORERS["langevin"](Toy(), [start(), other], seed=0, round_index=0)


def test_momenta_of_the_start_are_said_not_to_count(caplog: pytest.LogCaptureFixture) -> None:
    explorer: Explorer = EXPLORERS["langevin"]
    atoms = start()
    with caplog.at_level(logging.INFO, logger="ubmd"):
        explorer.check_start(atoms, "structure 0")
        assert not caplog.messages
        atoms.set_momenta(np.ones((6, 3)))
        explorer.check_start(atoms, "structure 0")
    assert caplog.messages == [
        "the momenta of structure 0 are not used: walkers start with those that the seed gives them"
    ]
