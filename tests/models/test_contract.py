from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.models import fused
from ubmd.models.base import AtomicOutput
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential
from ubmd.testing import potentials as contract


class Morse(nn.Module):
    """A pair potential with a smooth cutoff: shows that the checks ask for physics, not for one model."""

    cutoff = 4.2
    by_pair_vectors = True

    def forward(self, vectors: Tensor, batch: AtomicBatch) -> AtomicOutput:
        distance = torch.linalg.vector_norm(vectors, dim=-1)
        strength = (batch.numbers[:, None] + batch.numbers[batch.neighbours]) / 20
        decay = (-1.3 * (distance - 1.2)).exp()
        inside = (1 - distance / self.cutoff).clamp(min=0.0).square()
        energies = (strength * (decay.square() - 2 * decay) * inside).sum(1)
        return AtomicOutput(energies)


def gmnn(**options: object) -> Potential:
    """A model with every parameter off its initial value, as after training."""
    model = GMNN(contract.SPECIES, seed=4, **options).double()  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.1 * noise)
        for bias in model.readout.biases:
            bias.add_(1.0)
        model.energy_unit.fill_(0.6)
        model.shift.add_(torch.tensor([-1.0, -3.0, -5.0], dtype=torch.float64))
    return Potential(model)


@pytest.fixture(scope="module", params=["small", "paper", "plain", "long", "rank 2", "rank 1", "morse", "zbl"])
def potential(request: pytest.FixtureRequest) -> Iterator[Potential]:
    """``plain``: by PyTorch's operations instead of compiled kernels."""
    small = {"n_basis": 4, "n_gauss": 6, "hidden": (16, 12)}
    makers: dict[str, Callable[[], Potential]] = {
        "small": lambda: gmnn(cutoff=4.0, **small),
        "paper": lambda: gmnn(cutoff=5.0),
        "plain": lambda: gmnn(cutoff=4.0, **small),
        "long": lambda: gmnn(cutoff=6.0, **small),
        "rank 2": lambda: gmnn(cutoff=4.5, l_max=2, **small),
        "rank 1": lambda: gmnn(cutoff=4.5, l_max=1, **small),
        "morse": lambda: Potential(Morse()),
        "zbl": lambda: gmnn(cutoff=4.0, repulsion="zbl", repulsion_cutoff=2.0, **small),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fused.SWITCH, "0" if request.param == "plain" else "1")
        yield makers[request.param]()


@pytest.mark.parametrize("check", contract.CHECKS, ids=contract.name)
def test_contract(check: Callable[[Potential], None], potential: Potential) -> None:
    check(potential)


class Broken(Morse):
    """Morse with one physical mistake."""

    def __init__(self, mistake: str):
        super().__init__()
        self.mistake = mistake

    def forward(self, vectors: Tensor, batch: AtomicBatch) -> AtomicOutput:
        if self.mistake == "detached":
            vectors = 0.9 * vectors + 0.1 * vectors.detach()
        output = super().forward(vectors, batch)
        energies = output.energies
        if self.mistake == "padding":
            energies = energies + 0.01 * batch.neighbours.shape[1]
        elif self.mistake == "anisotropic":
            near = (torch.linalg.vector_norm(vectors, dim=-1) < 2.0)[..., None]
            energies = energies + (near * vectors).square().sum(1)[:, 0]
        elif self.mistake == "company":
            energies = energies + 0.1 * energies.mean()
        elif self.mistake == "jump":
            inside = torch.linalg.vector_norm(vectors, dim=-1) < self.cutoff
            energies = energies + 1e-4 * inside.sum(1)
        return AtomicOutput(energies)


@pytest.mark.parametrize(
    ("mistake", "check"),
    [
        ("detached", contract.forces_are_energy_differences),
        ("detached", contract.stress_is_an_energy_difference),
        ("padding", contract.neighbours_beyond_the_cutoff),
        ("padding", contract.batches),
        ("anisotropic", contract.rotations_and_reflections),
        ("company", contract.batches),
        ("company", contract.blown_up_neighbours),
        ("jump", contract.smoothness_at_the_cutoff),
    ],
)
def test_contract_finds_mistakes(mistake: str, check: Callable[[Potential], None]) -> None:
    with pytest.raises(AssertionError):
        check(Potential(Broken(mistake)))
