"""The compiled kernels against the descriptor in PyTorch's own operations."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ubmd.data.batch import AtomicBatch, collate
from ubmd.models import fused
from ubmd.models.fused import compiled
from ubmd.models.fused.functions import Described
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential, differentiate
from ubmd.testing.potentials import SPECIES, structures

SIZES = [(7, 9, 3), (3, 5, 3), (8, 4, 2), (4, 6, 1), (1, 1, 3), (2, 3, 0)]


def described(model: GMNN, batch: AtomicBatch) -> Described:
    return Described(batch, model.index[batch.numbers], model.beta, model.moments.gaussians, model.moments.l_max)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.detach().abs().max()))


@pytest.mark.parametrize(("n_basis", "n_gauss", "l_max"), SIZES)
def test_features_and_derivatives_to_second_order(n_basis: int, n_gauss: int, l_max: int) -> None:
    torch.manual_seed(0)
    model = GMNN(SPECIES, cutoff=4.5, n_basis=n_basis, n_gauss=n_gauss, l_max=l_max, hidden=(4,)).double()
    batch = collate(structures(), 5.5, dtype=torch.float64)
    vectors = batch.vectors().requires_grad_()
    expected = model.representation(vectors, batch)
    kernels = described(model, batch)
    width = expected.shape[1]
    assert kernels.features.shape[1] % 16 == 0
    assert kernels.features[:, width:].count_nonzero() == 0
    assert_close(kernels.features[:, :width], expected)

    by_features = torch.randn_like(expected).requires_grad_()
    scalars = batch.sum_atoms((expected * by_features).sum(1))
    plain = differentiate(scalars, vectors, batch, create_graph=True)
    pulled = kernels.pull(by_features)
    for a, b in zip(pulled, plain, strict=True):
        assert_close(a, b)
    twice = kernels.pull(torch.stack([by_features, 2 * by_features]).detach())
    assert_close(twice[0][1], 2 * plain[0])

    weights = [torch.randn_like(part) for part in (*plain, expected)]
    leaves = [by_features, model.beta]
    first = sum((w * part).sum() for w, part in zip(weights, (*plain, expected), strict=True))
    second = sum((w * part).sum() for w, part in zip(weights, (*pulled, kernels.features[:, :width]), strict=True))
    for a, b in zip(torch.autograd.grad(second, leaves), torch.autograd.grad(first, leaves), strict=True):
        assert_close(a, b)


def test_padded_products_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Potential(GMNN(SPECIES, cutoff=4.5, n_basis=3, n_gauss=5, hidden=(6, 4)).double())
    batch = collate(structures(), 4.5, dtype=torch.float64)
    found = []
    for many in (1, 10**6):
        monkeypatch.setattr("ubmd.models.gmnn.MANY", many)
        prediction = model(batch, training=True, stress=True)
        loss = prediction.energy.square().sum() + prediction.forces.square().sum()
        gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        found.append((prediction.energy, prediction.forces, *gradients))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ubmd.models.fused.functions.SMALLEST_PART", 2)
    model = Potential(GMNN(SPECIES, cutoff=4.5, n_basis=3, n_gauss=5, hidden=(4,)))
    batch = collate(structures(), 4.5)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        prediction = model(batch, training=True)
        (by_beta,) = torch.autograd.grad(prediction.forces.square().sum(), model.model.beta)
        found.append((prediction, by_beta))
    torch.set_num_threads(before)
    assert torch.equal(found[0][0].energy, found[1][0].energy)
    assert torch.equal(found[0][0].forces, found[1][0].forces)
    torch.testing.assert_close(found[0][1], found[1][1])  # added up in other parts


def test_single_precision() -> None:
    model, batch = GMNN(SPECIES, hidden=(8, 8)), collate(structures(), 6.0)
    found = Potential(model)(batch, stress=True)
    exact = Potential(model.double())(collate(structures(), 6.0, dtype=torch.float64), stress=True)
    for name in ("energy", "forces", "stress"):
        a, b = getattr(found, name), getattr(exact, name)
        b = b.nan_to_num()
        assert (a.nan_to_num() - b).abs().max() < 3e-6 * b.abs().max()


def test_unknown_elements_and_lone_atoms() -> None:
    model = GMNN(("H", "O"), hidden=(4,))
    with pytest.raises(IndexError, match="does not know"):
        described(model, collate(structures()[:1], 5.0))
    lone = collate(structures()[2:3], 5.0)
    assert described(model, lone).features.count_nonzero() == 0
    assert Potential(model)(lone).forces.count_nonzero() == 0


def test_where_the_kernels_are_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    batch = collate(structures()[:1], 5.0)
    assert GMNN(SPECIES, n_basis=8).explicit(batch) is not None
    assert GMNN(SPECIES, n_basis=9).explicit(batch) is None
    beta = GMNN(SPECIES).beta
    assert not fused.usable(batch.to("meta"), beta)
    assert not fused.usable(batch.to(torch.float64), beta)
    assert not fused.usable(batch.to(torch.float16), beta.half())
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.usable(batch, beta)
    monkeypatch.setenv(fused.SWITCH, "0")
    fused._found.cache_clear()
    with caplog.at_level(logging.INFO):
        assert [GMNN(SPECIES).explicit(batch) for _ in range(2)] == [None, None]
    assert caplog.text.count("UBMD_KERNELS=0") == 1
    fused._found.cache_clear()


def test_without_numba(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(name: str) -> None:
        raise ImportError("Numba needs NumPy 2.4 or less")

    fused._found.cache_clear()
    monkeypatch.setattr("importlib.import_module", fail)
    assert GMNN(SPECIES).explicit(collate(structures()[:1], 5.0)) is None
    assert "NumPy 2.4" in caplog.text
    fused._found.cache_clear()


def test_folder_of_compiled_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for base, kept in ((tmp_path / "here", True), (tmp_path / "file", False)):
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(base))
        compiled._folder.cache_clear()
        assert bool(compiled._folder()) == kept
    compiled._folder.cache_clear()


def test_a_full_disk_costs_no_result() -> None:
    calls: list[int] = []

    def full_at_first(number: int) -> None:
        calls.append(number)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")

    compiled.call(full_at_first, 7)
    assert calls == [7, 7]
