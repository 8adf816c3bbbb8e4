from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ubmd.data.batch import AtomicBatch, collate
from ubmd.models.contractions import InvariantContractions
from ubmd.models.gmnn import GMNN
from ubmd.models.moments import GaussianMoments
from ubmd.models.potential import Potential
from ubmd.models.radial import GaussianBasis, cosine_cutoff
from ubmd.testing.potentials import SPECIES, crystal, molecule
from ubmd.training.loss import SquaredLoss

N_GAUSS = 9


def surroundings(n_atoms: int, n_basis: int, l_max: int = 3, seed: int = 0) -> tuple[GaussianMoments, list[Tensor]]:
    """Moments with pair vectors, neighbours of two species and coefficients, float64; one pair is beyond the cutoff."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n_atoms, 11, 3, generator=generator, dtype=torch.float64)
    vectors = (1 + torch.rand(n_atoms, 11, 1, generator=generator)) * vectors / vectors.norm(dim=-1, keepdim=True)
    vectors[0, 3] = 1e3
    others = torch.randint(2, (n_atoms, 11), generator=generator)
    beta = torch.randn(n_atoms, 2 * N_GAUSS, n_basis, generator=generator, dtype=torch.float64)
    return GaussianMoments(GaussianBasis(N_GAUSS, 4.0), l_max).double(), [vectors, others, beta]


def random_moments(n_atoms: int, n_basis: int, l_max: int = 3, seed: int = 0) -> list[Tensor]:
    """Moments of random surroundings, float64."""
    moments, arguments = surroundings(n_atoms, n_basis, l_max, seed)
    return moments(*arguments)


# name: (einsum with one moment per factor, ranks, which factors may be exchanged)
CONTRACTIONS = {
    "psi0": ("", (0,), ()),
    "psi1.psi1": ("a,a", (1, 1), (0, 1)),
    "psi2.psi2": ("ab,ab", (2, 2), (0, 1)),
    "psi3.psi3": ("abc,abc", (3, 3), (0, 1)),
    "psi1.psi2.psi1": ("a,ab,b", (1, 2, 1), (0, 2)),
    "psi2.psi2.psi2": ("ab,bc,ca", (2, 2, 2), (0, 1, 2)),
    "psi1.psi3.psi2": ("a,abc,bc", (1, 3, 2), ()),
    "psi3.psi3.psi2": ("abc,abd,cd", (3, 3, 2), (0, 1)),
}
"""In the order of the features; factors in the order of the indices s."""


def naive_features(moments: list[np.ndarray], l_max: int = 3) -> np.ndarray:
    """Features of one atom, moments [n_basis, 3, ..., 3]: every product once, in index order."""
    n_basis = len(moments[0])
    values = []
    for expression, ranks, exchangeable in CONTRACTIONS.values():
        if max(ranks) > l_max:
            continue
        seen = set()
        for index in product(range(n_basis), repeat=len(ranks)):
            canonical = list(index)
            for place, s in zip(exchangeable, sorted(index[p] for p in exchangeable), strict=True):
                canonical[place] = s
            if tuple(canonical) in seen:
                continue
            seen.add(tuple(canonical))
            factors = [moments[rank][s] for rank, s in zip(ranks, index, strict=True)]
            values.append(float(np.einsum(f"{expression}->", *factors)))
    return np.array(values)


def as_tensors(moments: list[Tensor], atom: int) -> list[np.ndarray]:
    n = moments[0].shape[2]
    return [m[atom].T.numpy().reshape((n,) + (3,) * rank) for rank, m in enumerate(moments)]


def test_number_of_features() -> None:
    assert 7 + 3 * 28 + 196 + 84 + 343 + 196 == 910
    assert InvariantContractions(7).n_features == 910
    assert GMNN(["H", "C", "N", "O"]).readout.layer_sizes[0] == (910, 512)


@pytest.mark.parametrize("n_basis", [1, 2, 4, 7])
def test_number_of_features_follows_the_symmetries(n_basis: int) -> None:
    n = n_basis
    pairs, triples = n * (n + 1) // 2, n * (n + 1) * (n + 2) // 6
    counts = [n, n + pairs, n + 2 * pairs + pairs * n + triples]
    counts.append(counts[2] + pairs + n**3 + pairs * n)
    found = [InvariantContractions(n, l_max).n_features for l_max in range(4)]
    assert found == counts


@pytest.mark.parametrize(("n_basis", "l_max"), [(1, 3), (3, 0), (3, 1), (3, 2), (3, 3), (7, 3)])
def test_features_equal_the_definition(n_basis: int, l_max: int) -> None:
    moments = random_moments(3, n_basis)
    found = InvariantContractions(n_basis, l_max).double()(moments[: l_max + 1])
    for atom in range(3):
        expected = naive_features(as_tensors(moments, atom), l_max)
        assert found[atom].shape == expected.shape
        np.testing.assert_allclose(found[atom].numpy(), expected, rtol=1e-10, atol=1e-10)


def test_moments_equal_their_sum_over_neighbours() -> None:
    """Eqs. 11 and 12 neighbour by neighbour, with outer products."""
    moments, (vectors, others, beta) = surroundings(2, 3)
    found = moments(vectors, others, beta)
    coefficients = beta.reshape(2, 2, N_GAUSS, 3).numpy() / np.sqrt(N_GAUSS)
    for atom in range(2):
        expected = [np.zeros((3, *(3,) * rank)) for rank in range(4)]
        for j in range(11):
            r = vectors[atom, j].norm().item()
            bells = [gaussian(k, r, 4.0) for k in range(N_GAUSS)]
            power = bells @ coefficients[atom, others[atom, j]]
            for rank in range(4):
                expected[rank] += power
                power = np.multiply.outer(power, vectors[atom, j].numpy() / r)
        for rank in range(4):
            np.testing.assert_allclose(found[rank][atom].T.reshape(expected[rank].shape), expected[rank], atol=1e-6)


@pytest.mark.parametrize("l_max", [0, 1, 2, 3])
def test_derivatives_of_moments(l_max: int) -> None:
    """The explicit derivatives by vectors and coefficients, to second order, against finite differences."""
    moments, (vectors, others, beta) = surroundings(2, 2, l_max)
    vectors, others = vectors[:, :4].contiguous().requires_grad_(), others[:, :4]
    beta.requires_grad_()

    def function(v: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return tuple(moments(v, others, b))

    torch.manual_seed(0)
    weights = [torch.randn(m.shape, dtype=m.dtype).requires_grad_() for m in function(vectors, beta)]

    def by_vectors(v: Tensor, b: Tensor, *w: Tensor) -> Tensor:
        return torch.autograd.grad(function(v, b), v, w, create_graph=True)[0]

    assert torch.autograd.gradcheck(function, (vectors, beta))
    assert torch.autograd.gradcheck(by_vectors, (vectors, beta, *weights))


def test_gradient_by_coefficients_is_not_differentiable() -> None:
    """It would miss what comes through the vectors, and says so."""
    moments, (vectors, others, beta) = surroundings(2, 2)
    found = moments(vectors.requires_grad_(), others, beta.requires_grad_())
    (gradient,) = torch.autograd.grad(sum(m.square().sum() for m in found), beta, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def plain_features(vectors: Tensor, batch: AtomicBatch, model: GMNN) -> Tensor:
    """Features by operations that autograd differentiates on its own."""
    species = model.index[batch.numbers]
    distance = vectors.norm(dim=-1)
    bells = model.moments.gaussians(distance)[0].transpose(1, 2)
    coefficients = model.beta[species].unflatten(1, (len(model.species), -1)) * bells.shape[-1] ** -0.5
    own = coefficients[torch.arange(len(species))[:, None], species[batch.neighbours]]
    power = torch.einsum("nkg,nkgs->nks", bells, own)[..., None, :]
    moments = []
    for _ in range(4):
        moments.append(power.sum(1))
        power = ((vectors / distance[..., None])[..., :, None, None] * power[..., None, :, :]).flatten(2, 3)
    return model.contractions(moments)


def test_gradient_of_the_loss_equals_that_of_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy, forces and stress of structures of different sizes, with all derivatives by autograd alone."""
    batch = collate([molecule(), crystal(), crystal().repeat((1, 2, 1))], 4.0, dtype=torch.float64)
    torch.manual_seed(0)
    labels = {"energy": torch.randn(3), "forces": torch.randn(batch.positions.shape), "stress": torch.randn(3, 3, 3)}
    batch = batch.replace(**{name: value.double() for name, value in labels.items()})
    # the molecule's stress is not defined
    batch = batch.replace(cell=torch.where(batch.cell.abs().sum((1, 2), keepdim=True) > 0, batch.cell, torch.eye(3)))
    model = GMNN(SPECIES, cutoff=4.0, n_basis=3, n_gauss=5, hidden=(8, 6), seed=1).double()

    def gradients() -> list[Tensor]:
        prediction = Potential(model)(batch, stress=True, training=True)
        return list(torch.autograd.grad(SquaredLoss(1.0, 4.0, 0.01)(prediction, batch), list(model.parameters())))

    found = gradients()
    monkeypatch.setattr(GMNN, "representation", lambda self, v, b: plain_features(v, b, self))
    for one, other in zip(found, gradients(), strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10 * other.abs().max().item())


@pytest.mark.parametrize("l_max", [-1, 4])
def test_rank_out_of_range(l_max: int) -> None:
    with pytest.raises(ValueError, match=str(l_max)):
        InvariantContractions(3, l_max)


@pytest.mark.parametrize("l_max", [0, 1, 2, 3])
def test_features_do_not_turn(l_max: int) -> None:
    moments, (vectors, others, beta) = surroundings(4, 3, l_max, seed=5)
    contract = InvariantContractions(3, l_max).double()
    expected = contract(moments(vectors, others, beta))
    for seed in range(3):
        turn = torch.from_numpy(Rotation.random(random_state=seed).as_matrix())
        for sign in (1, -1):
            found = contract(moments(sign * vectors @ turn, others, beta))
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("l_max", [1, 3])
def test_first_and_second_derivatives(l_max: int) -> None:
    """The hand-written derivative of the selection of columns, to second order."""
    contract = InvariantContractions(2, l_max).double()
    leaves = [m.clone().requires_grad_() for m in random_moments(1, 2, l_max)]
    assert torch.autograd.gradcheck(lambda *m: contract(list(m)), leaves)
    assert torch.autograd.gradgradcheck(lambda *m: contract(list(m)), leaves)


def gaussian(k: int, distance: float, cutoff: float, r_min: float = 0.5) -> float:
    """Phi_k of Eq. 12 with its prefactor and the cosine cutoff."""
    if distance >= cutoff:
        return 0.0
    b = N_GAUSS**2 / cutoff**2
    centre = r_min + k * (cutoff - r_min) / N_GAUSS
    bell = (2 * b / np.pi) ** 0.25 * np.exp(-b * (distance - centre) ** 2)
    return bell * 0.5 * (np.cos(np.pi * distance / cutoff) + 1)


@pytest.mark.parametrize("cutoff", [5.0, 6.0])
def test_gaussians(cutoff: float) -> None:
    distance = np.array([0.01, 0.5, 0.97, 2.2, 3.333, cutoff - 1e-3, cutoff, cutoff + 1.0, 1.7e3])
    found = GaussianBasis(N_GAUSS, cutoff).double()(torch.from_numpy(distance))[0].T.numpy()
    expected = [[gaussian(k, r, cutoff) for k in range(N_GAUSS)] for r in distance]
    # the centres are kept in single precision until a model is made double
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("cutoff", [5.0, 6.0])
def test_gaussians_have_unit_norm(cutoff: float) -> None:
    """The prefactor alone, without the cosine: the squared Gaussian integrates to one."""
    basis = GaussianBasis(N_GAUSS, cutoff).double()
    r = torch.linspace(-10, 20, 30001, dtype=torch.float64)
    bells = basis.norm * torch.exp(-basis.width * (r[:, None] - basis.centres) ** 2)
    norms = torch.trapezoid(bells.square(), r, dim=0)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-6, atol=0)


def test_cosine_cutoff_vanishes_with_its_slope() -> None:
    r = torch.tensor([0.0, 2.5, 5.0, 5.1, 900.0], dtype=torch.float64, requires_grad=True)
    values, slopes = cosine_cutoff(r, 5.0)
    (differentiated,) = torch.autograd.grad(values.sum(), r)
    torch.testing.assert_close(slopes.detach(), differentiated)
    expected = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(values.detach(), expected)
    torch.testing.assert_close(slopes, torch.tensor([0, -np.pi / 10, 0, 0, 0], dtype=torch.float64))


def test_representation_equals_loops_over_pairs() -> None:
    """Eqs. 11-13 for a molecule and a crystal: loops over atoms, images and Gaussians."""
    cutoff, n_basis = 3.8, 3
    model = GMNN(SPECIES, cutoff=cutoff, n_basis=n_basis, hidden=(4,), seed=3).double()
    order = [1, 6, 8]
    beta = model.beta.detach().numpy().reshape(3, 3, N_GAUSS, n_basis)
    for atoms in (molecule(), crystal()):
        batch = collate([atoms], cutoff, dtype=torch.float64)
        found = model.representation(batch.vectors(), batch).detach().numpy()
        images = product(range(-4, 5), repeat=3) if atoms.pbc.any() else [(0, 0, 0)]
        translations = np.array(list(images)) @ np.asarray(atoms.cell)
        for i in range(len(atoms)):
            moments = [np.zeros((n_basis,) + (3,) * rank) for rank in range(4)]
            for j, translation in product(range(len(atoms)), translations):
                vector = atoms.positions[i] - atoms.positions[j] - translation
                r = float(np.linalg.norm(vector))
                if r == 0.0 or r >= cutoff:
                    continue
                zi, zj = (order.index(atoms.numbers[a]) for a in (i, j))
                bells = np.array([gaussian(k, r, cutoff) for k in range(N_GAUSS)])
                radial = np.einsum("ks,k->s", beta[zi, zj], bells) / np.sqrt(N_GAUSS)
                power = np.array(1.0)
                for rank in range(4):
                    moments[rank] += np.multiply.outer(radial, power)
                    power = np.multiply.outer(power, vector / r)
            np.testing.assert_allclose(found[i], naive_features(moments), rtol=2e-6, atol=2e-6)


def test_initial_coefficients_are_uniform() -> None:
    from scipy.stats import kstest

    beta = GMNN(["H", "C", "N", "O"], seed=1).beta.detach()
    assert beta.shape == (4, 4 * 9, 7)
    assert beta.numel() == 4**2 * 7 * 9
    assert kstest(beta.numpy().ravel(), "uniform", args=(-1, 2)).pvalue > 1e-3
