from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from ase import Atoms

from tests.dynamics.walker_toys import Toy, cluster, gas, walkers
from ubmd.data.batch import collate
from ubmd.dynamics.state import WalkerState, degrees_of_freedom, evaluate, initial_state, kinetic_temperature
from ubmd.errors import InputError
from ubmd.units import ACCELERATION, KB


def everything(state: WalkerState) -> dict[str, torch.Tensor]:
    nested = ("batch", "memory", "extended")
    own = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in nested}
    batch = {f"batch.{f.name}": getattr(state.batch, f.name) for f in fields(state.batch)}
    memory = {f"{name}.{k}": v for name in nested[1:] for k, v in getattr(state, name).items()}
    return {k: v for k, v in {**own, **batch, **memory}.items() if v is not None}


def test_momenta_are_maxwell_boltzmann_without_drift():
    structure, count = Atoms("CHHO", positions=np.arange(12).reshape(4, 3) * 1.1), 2000
    kelvin = torch.linspace(100, 900, count, dtype=torch.float64)
    batch = collate([structure] * count, 2.0, dtype=torch.float64)
    state = initial_state(batch, temperature=kelvin, seeds=range(count))
    assert batch.sum_atoms(state.momenta).abs().max() < 1e-13
    ratio = kinetic_temperature(state) / kelvin
    # 9 of the 12 degrees of freedom are left
    error = np.sqrt(2 / 9) * 9 / 12 / np.sqrt(count)
    assert abs(ratio.mean() - 9 / 12) < 4 * error
    # neither rescaled nor cut: the kinetic energies fluctuate as chi squared with 9 degrees of freedom
    assert ratio.var() == pytest.approx(2 * 9 / 12**2, rel=0.15)
    # each atom's variance is m kT (1 - m/M)
    mass = torch.as_tensor(structure.get_masses())
    scaled = (state.momenta.view(count, 4, 3) / kelvin[:, None, None].sqrt()).square().mean((0, 2))
    expected = KB * ACCELERATION * mass * (1 - mass / mass.sum())
    torch.testing.assert_close(scaled, expected, rtol=0.08, atol=0)


def test_momenta_depend_on_the_own_seed_alone():
    a, b = cluster(4), cluster(6)
    both = initial_state(collate([a, b], 6.0), temperature=300, seeds=[3, 4])
    alone = initial_state(collate([b], 6.0), temperature=300, seeds=[4])
    other = initial_state(collate([b], 6.0), temperature=300, seeds=[5])
    assert torch.equal(both.momenta[4:], alone.momenta)
    assert not torch.equal(other.momenta, alone.momenta)


def test_lone_atom_moves():
    state = initial_state(collate([Atoms("Ar")], 5.0), temperature=300, seeds=[1])
    assert kinetic_temperature(state) > 0


def test_kinetic_temperature_is_ases():
    structure = cluster(9)
    state = walkers([structure, cluster(5)], temperature=[250.0, 400.0])
    structure.set_velocities(state.momenta[:9].numpy() / structure.get_masses()[:, None] / np.sqrt(ACCELERATION))
    assert float(kinetic_temperature(state)[0]) == pytest.approx(structure.get_temperature(), rel=1e-12)
    assert degrees_of_freedom(state).tolist() == [27, 15]


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_state_is_restored_bit_by_bit(tmp_path, evaluated, dtype):
    state = walkers([gas(1), gas(2)], dtype=dtype)
    if evaluated:
        state = evaluate(state, Toy(drive=0.1))
    torch.save(state.state_dict(), tmp_path / "state.pt")
    restored = WalkerState.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    before, after = everything(state), everything(restored)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype, key
        assert torch.equal(value, after[key]), key
    assert restored.evaluated == evaluated


def test_saving_a_part_does_not_write_the_whole(tmp_path):
    state = walkers([cluster(8)] * 50)
    torch.save(
        state.select(torch.tensor([3])).replace(memory={"m": torch.zeros(1000, 1000)[:1]}).state_dict(),
        tmp_path / "part.pt",
    )
    assert (tmp_path / "part.pt").stat().st_size < 50_000


def test_foreign_state_is_refused():
    saved = walkers([cluster(3)]).state_dict()
    with pytest.raises(InputError, match="momenta"):
        WalkerState.from_state_dict({k: v for k, v in saved.items() if k != "momenta"})
    with pytest.raises(InputError, match="colour"):
        WalkerState.from_state_dict({**saved, "colour": torch.zeros(1)})


def test_select_takes_every_field_along():
    structures = [cluster(4, 1), cluster(7, 2), cluster(5, 3)]
    state = evaluate(walkers(structures, temperature=[100.0, 200.0, 300.0]), Toy(drive=0.1))
    chosen = state.select(torch.tensor([2, 0]))
    assert chosen.walker.tolist() == [2, 0]
    assert chosen.seed.tolist() == [25, 11]
    assert chosen.temperature.tolist() == [300.0, 100.0]
    atoms = torch.cat([torch.arange(11, 16), torch.arange(0, 4)])
    for name in ("momenta", "masses", "forces", "listed_positions", "atomic_uncertainty"):
        assert torch.equal(getattr(chosen, name), getattr(state, name)[atoms]), name
    for name in ("energy", "uncertainty", "tau"):
        assert torch.equal(getattr(chosen, name), getattr(state, name)[[2, 0]]), name
    assert torch.equal(chosen.memory["mean"], state.memory["mean"][[2, 0]])
    # the neighbours still are the right atoms
    assert torch.equal(Toy().energy_and_forces(chosen.batch)[0], Toy().energy_and_forces(state.batch)[0][[2, 0]])
    assert torch.equal(chosen.max_uncertainty(), state.max_uncertainty()[[2, 0]])


@pytest.mark.parametrize("structures", [[cluster(4, 1), cluster(7, 2), cluster(5, 3)], [gas(1), gas(2), gas(3)]])
def test_joined_are_the_walkers_of_all(structures):
    toy = Toy(cutoff=3.2, drive=0.1)
    whole = evaluate(walkers(structures, temperature=[100.0, 200.0, 300.0], cutoff=3.2), toy)
    first, second = (whole.select(torch.tensor(i)) for i in ([0], [2, 1]))
    first = first.replace(batch=first.batch.with_neighbours(6.0), listed_positions=first.batch.positions)
    assert first.batch.neighbours.shape[1] != second.batch.neighbours.shape[1]
    found = WalkerState.joined([first, second])
    again = found.select(torch.tensor([0, 2, 1]))
    neighbours = ("batch.neighbours", "batch.mask", "batch.shifts")
    before, after = everything(whole), everything(again)
    assert before.keys() == after.keys()
    for key, value in before.items():
        if key not in neighbours:
            torch.testing.assert_close(after[key], value, rtol=0, atol=0, msg=key)
    for state in (found, again):  # which cell does not move is known by this
        assert state.start_cell is state.listed_cell is state.batch.cell
    torch.testing.assert_close(toy(again.batch).forces, toy(whole.batch).forces, rtol=1e-12, atol=1e-12)
    rest = WalkerState.joined([second.select(torch.tensor([], dtype=torch.int64)), second])
    assert torch.equal(rest.batch.neighbours, second.batch.neighbours)


def test_walkers_that_remember_other_things_are_not_joined():
    state = evaluate(walkers([cluster(4)]), Toy(drive=0.1))
    with pytest.raises(InputError, match=r"memory\['mean'\] is known of some.*dynamics.slots=null"):
        WalkerState.joined([state, state.replace(memory={})])


def test_select_nobody():
    state = evaluate(walkers([gas(1)]), Toy(drive=0.1)).select(torch.tensor([], dtype=torch.int64))
    assert state.n_walkers == 0
    assert WalkerState.from_state_dict(state.state_dict()).n_walkers == 0


def test_energy_is_without_the_bias():
    state = walkers([cluster(4), cluster(4, 1)])
    assert torch.allclose(evaluate(state, Toy()).energy, Toy().energy_and_forces(state.batch)[0], atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": [300.0, float("nan")]}, "temperature"),
        ({"temperature": [300.0, 300.0, 300.0]}, "temperature"),
        ({"seeds": [1]}, "seeds"),
        ({"masses": torch.ones(3)}, "masses"),
        ({"masses": torch.zeros(8)}, "masses"),
        ({"walkers": [1, 1]}, "walkers"),
    ],
)
def test_refuses_bad_input(wrong, word):
    good = {"temperature": 300.0, "seeds": [1, 2]}
    with pytest.raises(InputError, match=word):
        initial_state(collate([cluster(4)] * 2, 6.0), **{**good, **wrong})
