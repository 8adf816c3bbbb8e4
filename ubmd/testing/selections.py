"""What every selection must fulfil: checks to run on any of them, as those of :mod:`ubmd.testing.potentials`.

A check takes a :class:`~ubmd.selection.base.Selection` and raises ``AssertionError`` when it fails.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ubmd.errors import InputError
from ubmd.selection.base import Pool, Selection

N, WIDTH, CHOSEN = 24, 12, 7
"""Fewer are chosen than there are features: their order is well defined for a selection by determinants, too."""
SEEDS = range(5)


def pool(selection: Selection) -> Pool:
    """Candidates without ties, with features if the selection needs them."""
    generator = torch.Generator().manual_seed(11)
    features = torch.randn(N, WIDTH, generator=generator, dtype=torch.float64)
    labelled = torch.randn(6, WIDTH, generator=generator, dtype=torch.float64)
    uncertainty = features.norm(dim=1)
    return Pool(uncertainty, features, labelled) if selection.needs_features else Pool(uncertainty)


def part(whole: Pool, candidates: Tensor) -> Pool:
    """The pool with these candidates, in this order."""
    features = None if whole.features is None else whole.features[candidates]
    return Pool(whole.uncertainty[candidates], features, whole.labelled_features)


def right_number(selection: Selection) -> None:
    """As many as wanted, from one to all: different ones, in range, as int64."""
    for n_select in (1, CHOSEN, N):
        found = selection(pool(selection), n_select, seed=3)
        assert found.shape == (n_select,)
        assert found.dtype == torch.int64
        assert len(set(found.tolist())) == n_select, f"chosen twice: {found.tolist()}"
        assert set(found.tolist()) <= set(range(N))


def refuses_more_than_there_is(selection: Selection) -> None:
    """More than the pool holds is refused, not cut short."""
    try:
        selection(pool(selection), N + 1, seed=3)
    except InputError:
        return
    raise AssertionError(f"{N + 1} of {N} candidates were not refused")


def same_seed_same_selection(selection: Selection) -> None:
    """The seed alone decides, not random numbers of the process, which are left alone."""
    for seed in SEEDS:
        torch.manual_seed(1)
        first = selection(pool(selection), CHOSEN, seed=seed)
        torch.manual_seed(2)
        before = torch.get_rng_state()
        again = selection(pool(selection), CHOSEN, seed=seed)
        assert torch.equal(first, again)
        assert torch.equal(torch.get_rng_state(), before), "drew from the random numbers of the process"


def order_of_the_pool(selection: Selection) -> None:
    """Without ties, the same candidates, however the pool is sorted; unless chosen at random."""
    whole = pool(selection)
    found = [selection(whole, CHOSEN, seed=seed) for seed in SEEDS]
    if any(not torch.equal(found[0], other) for other in found):
        return
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    assert set(order[selection(part(whole, order), CHOSEN, seed=0)].tolist()) == set(found[0].tolist())


def pool_is_not_changed(selection: Selection) -> None:
    """A selection leaves its pool as it was."""
    given, expected = pool(selection), pool(selection)
    selection(given, CHOSEN, seed=3)
    for name in ("uncertainty", "features", "labelled_features"):
        found, kept = getattr(given, name), getattr(expected, name)
        assert found is kept or torch.equal(found, kept), name


CHECKS: tuple[Callable[[Selection], None], ...] = (
    right_number,
    refuses_more_than_there_is,
    same_seed_same_selection,
    order_of_the_pool,
    pool_is_not_changed,
)


def name(check: Callable[[Selection], None]) -> str:
    """The name of a check."""
    return check.__name__
