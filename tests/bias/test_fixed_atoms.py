"""A bias acts on the atoms that move, and Eq. 8 compares what acts on them."""

from __future__ import annotations

import pytest
import torch

from tests.bias.bias_parts import batch_of, fitted_parts, molecules
from ubmd.bias.adaptive import SpeciesBalancedBias
from ubmd.bias.biased import FORCE_WINDOW, BiasedPotential
from ubmd.models.potential import Memory


@pytest.mark.parametrize("kind", [BiasedPotential, SpeciesBalancedBias])
def test_eq8_counts_free_atoms_alone(kind: type[BiasedPotential]) -> None:
    potential, uncertainty = fitted_parts()
    tau, fixed = 0.25, torch.tensor([True, False, False, True, False] * 2)
    biased = kind(potential, uncertainty, tau, window=2)
    slope_of = BiasedPotential(potential, uncertainty, 1.0, rescale=False)
    memory: Memory | None = None
    squares, found = torch.zeros(2, 2, dtype=torch.float64), None
    for seed in (0, 1):
        batch = batch_of(molecules(2, seed)).replace(fixed=fixed)
        plain = potential(batch)
        slope = slope_of(batch.replace(fixed=None)).forces - plain.forces
        both = torch.stack([plain.forces, slope], dim=1).square().sum(2)
        squares = squares + both.view(2, 5, 2)[:, ~fixed[:5]].sum(1)
        found = biased(batch, memory)
        memory = found.memory
    assert found is not None
    assert found.tau is not None
    assert memory is not None
    torch.testing.assert_close(memory[FORCE_WINDOW].sum(2), squares)
    torch.testing.assert_close(found.tau, tau * (squares[:, 0] / squares[:, 1]).sqrt())
    change = found.forces - plain.forces
    assert (change[fixed] == 0).all()
    assert (change[~fixed].abs().sum(1) > 0).all()
    if kind is BiasedPotential:
        expected = found.tau.repeat_interleave(5)[:, None] * slope
        torch.testing.assert_close(change[~fixed], expected[~fixed])
