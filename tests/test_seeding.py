from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from ubmd.seeding import Stage, stage_rng, stage_seed


def test_streams_are_those_of_numpy() -> None:
    """Part of the contract: SeedSequence([seed, round, stage])."""
    expected = np.random.default_rng(np.random.SeedSequence([7, 3, 2])).random(5)
    np.testing.assert_array_equal(stage_rng(7, 3, Stage.WEIGHTS).random(5), expected)
    further = np.random.default_rng(np.random.SeedSequence([7, 3, 5, 11])).random(5)
    np.testing.assert_array_equal(stage_rng(7, 3, Stage.WALKERS, 11).random(5), further)


def test_stages_keep_their_numbers() -> None:
    """They are part of the streams: a change would change every finished run."""
    assert {stage.name: stage.value for stage in Stage} == {
        "PERTURB": 0,
        "SPLIT": 1,
        "WEIGHTS": 2,
        "SHUFFLE": 3,
        "SKETCH": 4,
        "WALKERS": 5,
        "SELECT": 6,
        "SYSTEM": 7,
    }


def test_every_stage_of_every_round_has_a_stream_of_its_own() -> None:
    streams = list(product(range(4), range(6), Stage))
    seeds = {stage_seed(*stream) for stream in streams}
    draws = {stage_rng(*stream).integers(2**63) for stream in streams}
    assert len(seeds) == len(draws) == len(streams)
    walkers = {stage_seed(0, 0, Stage.WALKERS, w) for w in range(100)}
    assert len(walkers) == 100


def test_history_does_not_matter() -> None:
    before = stage_rng(1, 2, Stage.SPLIT).random(3)
    np.random.seed(0)  # noqa: NPY002
    stage_rng(1, 1, Stage.SPLIT).random(100)
    np.testing.assert_array_equal(stage_rng(1, 2, Stage.SPLIT).random(3), before)


def test_seeds_fit_torch() -> None:
    for seed in range(200):
        value = stage_seed(seed, 0, Stage.SKETCH)
        assert 0 <= value < 2**63
        assert torch.Generator().manual_seed(value).initial_seed() == value
    assert max(stage_seed(seed, 0, Stage.SKETCH) for seed in range(50)) > 2**60


def test_large_seeds() -> None:
    assert stage_seed(2**40, 0, Stage.SPLIT) != stage_seed(2**40 + 1, 0, Stage.SPLIT)


def test_negative_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="seed=-1"):
        stage_rng(-1, 0, Stage.SPLIT)
