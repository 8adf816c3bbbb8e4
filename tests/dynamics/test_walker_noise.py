from __future__ import annotations

import numpy as np
import pytest
import torch

from ubmd.dynamics.noise import BLOCK, WalkerNoise, checked_seeds
from ubmd.errors import InputError


def source(seeds, steps, sizes, dtype=torch.float64) -> WalkerNoise:
    seed, step, n_atoms = torch.tensor(seeds), torch.tensor(steps), torch.tensor(sizes)
    return WalkerNoise(seed, step, n_atoms, dtype=dtype, device="cpu")


def draw(noise: WalkerNoise, steps: int) -> torch.Tensor:
    return torch.stack([noise.next() for _ in range(steps)])


def test_numbers_belong_to_seed_and_step():
    total = 3 * BLOCK + 5
    alone = draw(source([42], [0], [4]), total)
    # among others of other sizes that have been running for other times, none of them aligned
    mixed = source([7, 42, 9], [11, 0, 2 * BLOCK - 1], [2, 4, 3])
    assert torch.equal(draw(mixed, total)[:, 2:6], alone)


@pytest.mark.parametrize("step", [1, BLOCK - 1, BLOCK, BLOCK + 17, 2 * BLOCK])
def test_restart_continues_the_stream(step):
    uninterrupted = draw(source([5, 6], [0, 0], [3, 3]), 3 * BLOCK)
    restarted = draw(source([5, 6], [step, step], [3, 3]), 3 * BLOCK - step)
    assert torch.equal(restarted, uninterrupted[step:])


def test_numbers_are_independent_standard_normals():
    drawn = draw(source([1, 2], [0, 0], [20, 20]), 6 * BLOCK).numpy()  # 92,160 numbers
    assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size)
    assert abs(drawn.var() - 1) < 4 * np.sqrt(2 / drawn.size)
    assert abs((drawn**4).mean() - 3) < 4 * np.sqrt(96 / drawn.size)
    pairs = {
        "xi and eta": (drawn[:, :, 0], drawn[:, :, 1]),
        "walkers": (drawn[:, :20], drawn[:, 20:]),
        "steps": (drawn[:-1], drawn[1:]),
        "blocks": (drawn[:-BLOCK], drawn[BLOCK:]),
        "components": (drawn[..., 0], drawn[..., 1]),
    }
    for name, (a, b) in pairs.items():
        assert abs((a * b).mean()) < 4 / np.sqrt(a.size), name


def test_float32_is_the_rounded_float64():
    double = draw(source([3], [0], [5]), 10)
    assert torch.equal(draw(source([3], [0], [5], torch.float32), 10), double.float())


@pytest.mark.parametrize("seeds", [[1, -2], [1], [1, 1], [1.5, 2.0], [1, 2**63]])
def test_refuses_bad_seeds(seeds):
    with pytest.raises(InputError, match="seeds"):
        checked_seeds(np.array(seeds), 2)


def test_takes_the_largest_seed():
    assert checked_seeds([0, 2**63 - 1], 2).tolist() == [0, 2**63 - 1]
