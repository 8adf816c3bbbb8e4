"""Ways to explore that are no molecular dynamics, and what all ways have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from tests.dynamics.walker_toys import Toy, assert_same, cluster, gas, walkers
from ubmd import paths
from ubmd.bias.metadynamics import Metadynamics
from ubmd.cli import app
from ubmd.config import build
from ubmd.data.batch import collate
from ubmd.data.perturb import stretch
from ubmd.dynamics.adversarial import AdamDescent, AdversarialExploration
from ubmd.dynamics.connectivity import Rotation
from ubmd.dynamics.explore import Explorer, WalkerExploration
from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.integrators.montecarlo import Metropolis, MonteCarlo, MonteCarloExploration
from ubmd.dynamics.perturbation import PerturbationExploration, RandomPerturbation
from ubmd.dynamics.state import resting_state
from ubmd.dynamics.stopping import StoppingRules, StopReason
from ubmd.dynamics.trajectory import read_trajectory, write_trajectory
from ubmd.dynamics.walkers import run_walkers
from ubmd.errors import InputError
from ubmd.observables import Torsion

RULES = StoppingRules(0.1, max_steps=60, min_distance=0.3)


def burst(batch, forces, atomic):
    return forces * torch.nan, atomic


class Interrupted(Exception):  # noqa: N818
    pass


STEPS = {
    "monte carlo": Metropolis(MonteCarlo(displacement=0.1, torsion_fraction=0.3), (Rotation((0, 1), (2, 3)),)),
    "adam": AdamDescent(0.02),
    "perturbation": RandomPerturbation(0.15),
    "metadynamics": Langevin(dt=1.0, friction=0.01),
    "shared hills": Langevin(dt=1.0, friction=0.01),
}


@pytest.mark.parametrize("way", STEPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_interrupted_exploration_equals_the_uninterrupted_one(tmp_path: Path, way: str, dtype: torch.dtype) -> None:
    def case():
        state = walkers([cluster(6, i) for i in range(5)], dtype=dtype, fuse=[10**6] * 3 + [37, 10**6])
        potential = Toy(scale=0.05, drive=0.02, fault=burst)
        if way in ("metadynamics", "shared hills"):
            torsions = {"a": Torsion([0, 1, 2, 3])}
            potential = Metadynamics(potential, variables=torsions, height=0.1, stride=3, shared="shared" in way)
        return state, potential, STEPS[way], RULES

    whole = run_walkers(*case(), frame_interval=5, skin=0.4)
    assert whole.n_frames > 10
    assert len(set(whole.steps)) > 1, "walkers stop one by one"
    file, lives, calls = tmp_path / "walkers.pt", 0, 0

    def die_later(*_) -> None:
        nonlocal calls
        calls += 1
        if calls > lives + 1:
            raise Interrupted

    options = {"checkpoint": file, "checkpoint_interval": 5, "on_progress": die_later, "progress_interval": 4}
    while True:
        calls = 0
        try:
            found = run_walkers(*case(), frame_interval=5, skin=0.4, **options)
            break
        except Interrupted:
            lives += 1
    assert lives > 2
    assert_same(found, whole)


@pytest.mark.parametrize("periodic", [False, True])
def test_adam_against_torch(periodic: bool) -> None:
    """Positions after 30 steps against torch.optim.Adam on the same energy, three walkers at once."""
    structures = [gas(i) if periodic else cluster(6, i) for i in range(3)]
    toy = Toy(cutoff=3.5, plain=False)
    batch = collate(structures, 3.5 + 2.0, dtype=torch.float64)
    rules = StoppingRules(None, max_steps=30, min_distance=None)
    state = resting_state(batch, seeds=[1, 2, 3])
    found = run_walkers(state, toy, AdamDescent(0.02, (0.8, 0.95)), rules, frame_interval=30, skin=2.0)
    for walker, atoms in enumerate(structures):
        alone = collate([atoms], 3.5 + 2.0, dtype=torch.float64)
        positions = alone.positions.clone().requires_grad_()
        optimizer = torch.optim.Adam([positions], lr=0.02, betas=(0.8, 0.95))
        for _ in range(30):
            positions.grad = -toy.energy_and_forces(alone.replace(positions=positions.detach()))[1]
            optimizer.step()
        np.testing.assert_allclose(found.positions[walker], positions.detach(), atol=1e-10)


def adversarial(**options) -> AdversarialExploration:
    return AdversarialExploration(
        **({"integrator": AdamDescent(), "stopping": StoppingRules(None, 40), "frame_interval": 10} | options)
    )


def test_attacks_start_beside_the_structures() -> None:
    """Shifts are within the half-width, differ by walker, and depend on nothing but the walker's own seed."""
    explorer = adversarial(integrator=AdamDescent(1e-9), displacement=0.05, n_walkers=4, frame_interval=40)
    start = cluster(6)
    found = explorer(Toy(), [start], seed=3, round_index=2, dtype=torch.float64)
    shift = found.positions - start.positions
    assert 0.04 < np.abs(shift).max() < 0.05 + 1e-6
    assert len({shift[w, 0, 0] for w in range(4)}) == 4
    fewer = adversarial(integrator=AdamDescent(1e-9), displacement=0.05, n_walkers=2, frame_interval=40)
    np.testing.assert_array_equal(
        fewer(Toy(), [start], seed=3, round_index=2, dtype=torch.float64).positions, found.positions[:2]
    )
    assert np.isnan(found.temperature).all()


def test_attacks_go_downhill() -> None:
    found = adversarial(n_walkers=3)(Toy(), [cluster(6)], seed=0, round_index=0, dtype=torch.float64)
    energy = found.energy.reshape(3, 4)
    # Toy reports a bias of its own that its forces do not follow, so the unbiased energy is what falls
    assert (np.diff(energy, axis=1) < 0).all()
    assert (found.reasons == StopReason.MAX_STEPS).all()


def perturbation(**options) -> PerturbationExploration:
    return PerturbationExploration(
        **({"integrator": RandomPerturbation(0.2), "stopping": StoppingRules(None, 300), "frame_interval": 1} | options)
    )


def test_perturbations_are_independent_and_uniform() -> None:
    start = cluster(4)
    found = perturbation(n_walkers=2)(Toy(), [start], seed=0, round_index=0, dtype=torch.float64)
    assert found.n_frames == 600
    shift = found.positions - start.positions
    assert np.abs(shift).max() <= 0.2
    assert shift.std() == pytest.approx(0.2 / 3**0.5, rel=0.02)
    assert (shift**4).mean() == pytest.approx(0.2**4 / 5, rel=0.03)
    series = shift[found.walker == 0].reshape(300, -1)
    for lag in (1, 2):
        assert abs(np.corrcoef(series[lag:].ravel(), series[:-lag].ravel())[0, 1]) < 0.06
    other = perturbation(n_walkers=2)(Toy(), [start], seed=0, round_index=1, dtype=torch.float64)
    assert not np.isin(other.positions, found.positions).any()


def test_perturbed_cells() -> None:
    """Cell and positions are strained by the same (I + 2 eps)^(1/2); energies are those of what is written."""
    start, toy = gas(0), Toy(cutoff=3.0)
    explorer = perturbation(integrator=RandomPerturbation(0.0, 0.1), stopping=StoppingRules(None, 50, None), skin=0.0)
    found = explorer(toy, [start], seed=0, round_index=0, dtype=torch.float64)
    strains = []
    for position, cell in zip(found.positions, found.cell, strict=True):
        deform = np.linalg.solve(start.cell.array, cell)
        np.testing.assert_allclose(deform, deform.T, atol=1e-12)
        np.testing.assert_allclose(position, start.positions @ deform, atol=1e-10)
        strain = 0.5 * (deform @ deform - np.eye(3))
        np.testing.assert_allclose(stretch(strain), deform, atol=1e-10)
        strains.append(strain)
    diagonal = np.array(strains)[:, [0, 1, 2], [0, 1, 2]]
    shear = np.array(strains)[:, [0, 0, 1], [1, 2, 2]]
    assert np.abs(strains).max() <= 0.1
    # uniform, and the mean of two uniform numbers
    assert diagonal.std() == pytest.approx(0.1 / 3**0.5, rel=0.05)
    assert shear.std() == pytest.approx(0.1 / 6**0.5, rel=0.05)
    frames = [Atoms(found.numbers, p, cell=c, pbc=True) for p, c in zip(found.positions, found.cell, strict=True)]
    energy, _ = toy.energy_and_forces(collate(frames, 3.0, dtype=torch.float64))
    np.testing.assert_allclose(found.energy, energy, rtol=1e-10)


def test_strain_needs_a_cell() -> None:
    for atoms, message in ((cluster(4), "periodic"), (Atoms("C", cell=[2, 2, 2], pbc=True), "three atoms")):
        with pytest.raises(InputError, match=message):
            perturbation(integrator=RandomPerturbation(0.1, 0.1))(Toy(), [atoms], seed=0, round_index=0)


EXPLORERS = [
    adversarial(stopping=StoppingRules(2.0, 40)),
    perturbation(stopping=StoppingRules(4.0, 40)),
    MonteCarloExploration(
        integrator=MonteCarlo(torsion_fraction=0.0), stopping=StoppingRules(4.0, 40), frame_interval=5
    ),
    WalkerExploration(integrator=Langevin(), stopping=StoppingRules(4.0, 40), frame_interval=5),
]


@pytest.mark.parametrize("explorer", EXPLORERS, ids=lambda e: type(e).__name__)
def test_every_explorer_keeps_its_promises(explorer: Explorer, tmp_path: Path) -> None:
    starts = [cluster(6, i) for i in range(3)]
    found = explorer(Toy(), starts, seed=1, round_index=0, checkpoint=tmp_path / "walkers.pt")
    assert_same(explorer(Toy(), starts, seed=1, round_index=0), found)
    assert 0 < found.n_frames <= explorer.max_candidates
    assert found.walkers.tolist() == list(range(8))
    write_trajectory(tmp_path / "t.h5", found)
    np.testing.assert_array_equal(read_trajectory(tmp_path / "t.h5").temperature, found.temperature)
    for walker in np.flatnonzero(found.reasons == StopReason.UNCERTAINTY):
        frames = found.walker == walker
        assert found.atomic_uncertainty[frames].max(1)[-1] > explorer.stopping.uncertainty_threshold
        assert (found.atomic_uncertainty[frames].max(1)[:-1] <= explorer.stopping.uncertainty_threshold).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamDescent(0.0), "learning_rate"),
        (lambda: AdamDescent(betas=(0.9, 1.0)), "betas"),
        (lambda: RandomPerturbation(-0.1), "displacement"),
        (lambda: RandomPerturbation(0.1, 0.2), "strain"),
        (lambda: adversarial(displacement=-1.0), r"displacement=-1"),
        (lambda: perturbation(n_walkers=0), r"dynamics\.n_walkers"),
        (lambda: perturbation(frame_interval=0), r"dynamics\.frame_interval"),
        (lambda: perturbation(skin=-1.0), r"dynamics\.skin"),
    ],
)
def test_bad_options(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (paths.config_dir() / group).glob("*.yaml"))


@pytest.mark.parametrize("name", options("dynamics"))
def test_every_dynamics_of_the_configuration_can_be_built(name: str) -> None:
    cfg = app.compose("learn", ["experiment=ala2", f"dynamics={name}"])
    explorer = build(cfg, "dynamics")
    assert isinstance(explorer, Explorer)
    assert explorer.max_candidates >= cfg.learning.batch_size
    assert (explorer.time_step is None) == (not isinstance(explorer, WalkerExploration))


@pytest.mark.parametrize("name", options("bias"))
def test_every_bias_of_the_configuration_can_be_built(name: str) -> None:
    cfg = app.compose("learn", ["experiment=ala2", f"bias={name}"])
    potential = build(cfg, "bias")(potential=torch.nn.Identity(), uncertainty=torch.nn.Identity())
    assert isinstance(potential, torch.nn.Module)


def test_metadynamics_takes_the_temperature_of_the_dynamics() -> None:
    overrides = ["experiment=ala2_metadynamics", "dynamics.integrator.temperature=450"]
    potential = build(app.compose("learn", overrides), "bias")(potential=Toy())
    assert potential.tempering == pytest.approx(450 * 8.617330e-5 * 9, rel=1e-5)
    assert potential.periods.tolist() == pytest.approx([2 * np.pi] * 2)
