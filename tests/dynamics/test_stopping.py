from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms

from tests.dynamics.walker_toys import Plain, Toy, cluster, walkers
from ubmd.dynamics.state import WalkerState, evaluate, kinetic_temperature
from ubmd.dynamics.stopping import StoppingRules, StopReason, stop_reasons
from ubmd.errors import InputError

RULES = StoppingRules(uncertainty_threshold=1.5, max_steps=100, min_distance=0.5, max_temperature_factor=10.0)


@pytest.fixture
def state() -> WalkerState:
    """Four walkers of eight atoms with no reason to stop."""
    state = evaluate(walkers([cluster(8, i) for i in range(4)]), Toy())
    return state.replace(atomic_uncertainty=torch.full((32,), 0.1), step=torch.full((4,), 99))


def changed(state: WalkerState, name: str, atom: int, value: float | torch.Tensor) -> WalkerState:
    of_batch = name == "positions"
    values = (state.batch.positions if of_batch else getattr(state, name)).clone()
    values[atom] = value
    return state.replace(batch=state.batch.replace(positions=values)) if of_batch else state.replace(**{name: values})


def nan(state):
    return changed(state, "positions", 9, torch.nan)


def infinite(state):
    return changed(state, "momenta", 9, torch.inf)


def no_energy(state):
    return changed(state, "energy", 1, torch.nan)


def unknown(state):
    return changed(state, "atomic_uncertainty", 9, torch.nan)


def hot(state):
    return changed(state, "momenta", slice(8, 16), state.momenta[8:16] * 5)


def close(state):
    x = state.batch.positions[8] + torch.tensor([0.0, 0.49, 0.0])
    return changed(state, "positions", 15, x)


def collapsed(state):
    return reshaped(state, 0.24 * torch.eye(3))


def reshaped(state, strain):
    cells = 5 * torch.eye(3, dtype=torch.float64).repeat(4, 1, 1)
    cell = cells.clone()
    cell[1] = cell[1] @ strain.double()
    return state.replace(batch=state.batch.replace(cell=cell), start_cell=cells)


def uncertain(state):
    return changed(state, "atomic_uncertainty", 15, 1.51)


def late(state):
    return changed(state, "step", 1, 100)


ORDER = [
    (collapsed, StopReason.CELL),
    (nan, StopReason.NAN),
    (close, StopReason.CLOSE_CONTACT),
    (hot, StopReason.TEMPERATURE),
    (uncertain, StopReason.UNCERTAINTY),
    (late, StopReason.MAX_STEPS),
]


def test_nobody_stops_without_reason(state):
    reasons = stop_reasons(state, RULES)
    assert reasons.dtype == torch.int8
    assert reasons.tolist() == [StopReason.RUNNING] * 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [*ORDER, (infinite, StopReason.NAN), (no_energy, StopReason.NAN), (unknown, StopReason.NAN)],
)
def test_each_reason_stops_its_walker_alone(state, change, reason):
    assert stop_reasons(change(state), RULES).tolist() == [0, reason, 0, 0]


def test_unphysical_states_are_no_candidates(state):
    # every combination of two: the one named first in ORDER wins
    for i, (first, reason) in enumerate(ORDER):
        for second, _ in ORDER[i + 1 :]:
            found = stop_reasons(first(second(state)), RULES).tolist()
            assert found == [0, reason, 0, 0], (first, second)
    assert [r for r in StopReason if r.unphysical] == [
        StopReason.TEMPERATURE,
        StopReason.CLOSE_CONTACT,
        StopReason.NAN,
        StopReason.CELL,
    ]


def test_rules_can_be_switched_off(state):
    off = StoppingRules(None, 1000, None, None, max_volume_factor=None, min_height_factor=None)
    assert not stop_reasons(uncertain(hot(close(late(collapsed(state))))), off).any()
    assert stop_reasons(nan(state), off).tolist() == [0, StopReason.NAN, 0, 0]


def test_potential_without_uncertainties():
    state = evaluate(walkers([cluster(8)]), Plain(Toy()))
    assert stop_reasons(state, RULES).tolist() == [0]


def test_thresholds_are_where_they_say(state):
    x = state.batch.positions[8] + torch.tensor([0.0, 0.51, 0.0])
    assert not stop_reasons(changed(state, "positions", 15, x), RULES).any()
    assert not stop_reasons(changed(state, "atomic_uncertainty", 15, 1.49), RULES).any()
    limit = 300 * 10 * (1 + 2 / 8)
    kelvin = kinetic_temperature(state)[1]
    for factor, stops in ((0.99, False), (1.01, True)):
        momenta = state.momenta[8:16] * (factor * limit / kelvin).sqrt()
        assert bool(stop_reasons(changed(state, "momenta", slice(8, 16), momenta), RULES).any()) is stops


@pytest.mark.parametrize(
    ("strain", "stops"),
    [
        ([[3.9, 0, 0], [0, 1, 0], [0, 0, 1]], False),  # grown
        ([[4.1, 0, 0], [0, 1, 0], [0, 0, 1]], True),
        ([[0.5, 0, 0], [0, 0.51, 0], [0, 0, 1]], False),  # collapsed
        ([[0.5, 0, 0], [0, 0.49, 0], [0, 0, 1]], True),
        ([[0.29, 0, 0], [0, 2, 0], [0, 0, 1]], True),  # flat, of nearly the same volume
        ([[1, 0, 0], [3.1, 1, 0], [0, 0, 1]], False),  # sheared: faces at 1 / sqrt(1 + 3.1²) = 0.307
        ([[1, 0, 0], [3.3, 1, 0], [0, 0, 1]], True),
        ([[0, -1.0, 0], [1, 0, 0], [0, 0, -1]], False),  # turned and reflected
        ([[float("nan"), 0, 0], [0, 1, 0], [0, 0, 1]], False),
    ],
)
def test_limits_of_the_cell(state, strain, stops):
    reasons = stop_reasons(reshaped(state, torch.tensor(strain)), RULES)
    assert reasons.tolist() == [0, StopReason.CELL if stops else 0, 0, 0]


def test_contact_with_a_periodic_image():
    atoms = Atoms("C2", positions=[[0.1, 2, 2], [4.8, 2, 2]], cell=[5, 5, 5], pbc=True)
    state = evaluate(walkers([atoms], cutoff=3.0), Toy(cutoff=3.0))
    rules = StoppingRules(max_temperature_factor=None, uncertainty_threshold=None)
    assert stop_reasons(state, rules).tolist() == [StopReason.CLOSE_CONTACT]


def test_a_pair_of_atoms_in_equilibrium_is_not_hot():
    # the temperature of two atoms fluctuates by 58 %, so that 40,000 walkers hold values of some 5 T
    pairs = walkers([Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 3.8]])])
    many = 40000
    batch = pairs.batch.select(torch.zeros(many, dtype=torch.int64))
    thermal = np.random.default_rng(1).normal(size=(2 * many, 3)) * float(pairs.momenta.abs().mean())
    state = pairs.select(torch.zeros(many, dtype=torch.int64)).replace(batch=batch)
    state = state.replace(momenta=torch.as_tensor(thermal))
    state = state.replace(temperature=kinetic_temperature(state).mean().expand(many))
    assert (kinetic_temperature(state) > 4 * state.temperature).any()
    assert not stop_reasons(state, RULES).any()


def test_every_reason_is_described():
    assert len({reason.description for reason in StopReason}) == len(StopReason)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"uncertainty_threshold": 0.0}, "uncertainty_threshold"),
        ({"uncertainty_threshold": float("nan")}, "uncertainty_threshold"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": 1.5}, "max_steps"),
        ({"min_distance": -0.5}, "min_distance"),
        ({"max_temperature_factor": 1.0}, "max_temperature_factor"),
        ({"max_volume_factor": 0.5}, "max_volume_factor"),
        ({"min_height_factor": 1.5}, "min_height_factor"),
    ],
)
def test_refuses_bad_settings(wrong, word):
    with pytest.raises(InputError, match=word):
        StoppingRules(**wrong)
