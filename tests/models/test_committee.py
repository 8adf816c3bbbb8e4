from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from tests.bias.bias_parts import difference_gradient, difference_strain
from tests.outside.message_passing import MessagePassing
from ubmd.bias.biased import BiasedPotential
from ubmd.data.batch import AtomicBatch, collate
from ubmd.errors import InputError
from ubmd.models.committee import Committee
from ubmd.models.ensemble import Ensemble
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential
from ubmd.models.scale_shift import make_model
from ubmd.testing import potentials as contract
from ubmd.training.module import PotentialModule
from ubmd.uncertainty import EnsembleUncertainty

SMALL = partial(GMNN, cutoff=4.0, n_basis=3, n_gauss=5, hidden=(10, 8))
WIDER = partial(GMNN, cutoff=4.5, n_basis=2, n_gauss=6, hidden=(12,))
REPELLED = partial(SMALL, repulsion="zbl")
KINDS = {
    "pair vectors": (SMALL, WIDER),
    "mixed": (SMALL, MessagePassing, WIDER),
    "repelled": (REPELLED, partial(WIDER, repulsion="zbl")),
}


def committee(kind: str) -> Committee:
    torch.manual_seed(5)
    return Committee(contract.SPECIES, KINDS[kind]).double()


def batch_of(model: Committee) -> AtomicBatch:
    return collate(contract.structures(), model.cutoff, dtype=torch.float64)


@pytest.mark.parametrize("check", contract.CHECKS, ids=contract.name)
def test_contract(check: Callable[[Potential], None]) -> None:
    check(Potential(committee("mixed")))


@pytest.mark.parametrize("kind", KINDS)
def test_means_and_deviations_are_those_of_members_alone(kind: str) -> None:
    model = committee(kind)
    batch = batch_of(model)
    alone = [Potential(member)(batch, stress=True) for member in model.members]
    found = Potential(model)(batch, stress=True)
    energies, forces = torch.stack([p.energy for p in alone]), torch.stack([p.forces for p in alone])
    torch.testing.assert_close(found.energy, energies.mean(0))
    torch.testing.assert_close(found.forces, forces.mean(0))
    assert found.stress is not None
    stress = torch.stack([p.stress[1] for p in alone if p.stress is not None])
    torch.testing.assert_close(found.stress[1], stress.mean(0))
    output, leaf = Potential(model).atoms(batch)
    total, atomic = EnsembleUncertainty(model)(model, output, leaf, batch)
    torch.testing.assert_close(total, energies.std(0, correction=0) / batch.n_atoms)
    torch.testing.assert_close(atomic, forces.var(0, correction=0).mean(1).sqrt())
    assert total.max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_bias_forces_and_stress_are_differences(kind: str) -> None:
    model = committee(kind)
    biased = BiasedPotential(Potential(model), EnsembleUncertainty(model), 0.3, tau_stress=0.3, rescale=False)
    batch = collate([contract.crystal()], model.cutoff + 0.5, dtype=torch.float64)
    found, plain = biased(batch, None, stress=True), Potential(model)(batch, stress=True)
    assert (found.forces - plain.forces).abs().max() > 1e-5, "no bias"

    def energy(moved: AtomicBatch) -> torch.Tensor:
        return biased(moved).energy

    expected = torch.as_tensor(-difference_gradient(energy, batch))
    torch.testing.assert_close(found.forces, expected, rtol=1e-6, atol=1e-8)
    expected = torch.as_tensor(difference_strain(energy, batch)) / batch.volume
    assert found.stress is not None
    torch.testing.assert_close(found.stress[0], expected, rtol=1e-6, atol=1e-8)


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="from 2 to 100 members, not 1"):
        Committee(["H"], [SMALL])
    ensemble = partial(Ensemble, member=SMALL)
    with pytest.raises(InputError, match="member 1 of a committee is a Ensemble; give its members"):
        Committee.of([make_model(make, species=["H"]) for make in (SMALL, ensemble)])
    with pytest.raises(InputError, match="the same repulsion or none"):
        Committee(contract.SPECIES, [REPELLED, SMALL])
    with pytest.raises(InputError, match="the same repulsion or none"):
        Committee(contract.SPECIES, [REPELLED, partial(REPELLED, repulsion_cutoff=0.6)])
    with pytest.raises(InputError, match="no fit changes; train its members one by one"):
        PotentialModule(committee("mixed"))
