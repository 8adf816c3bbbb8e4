from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.test_module import STRUCTURES, datamodule, module, trainer
from ubmd.callbacks.divergence import Divergence, FitDivergedError, check_best
from ubmd.callbacks.scale_shift import FitScaleShift
from ubmd.errors import InputError
from ubmd.training.module import LearningRates, PotentialModule

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches", "ignore:The '.*_dataloader' does not have many workers"
)


def fit(fitted: PotentialModule, data: Any, **options: Any) -> None:
    trainer(FitScaleShift(), Divergence(), **options).fit(fitted, data)


@pytest.mark.parametrize("every", [1, 3])
def test_infinite_rates(every: int) -> None:
    """Noticed by the first validation or, where there is none yet, by the training loss."""
    rates = LearningRates(readout=1e6, representation=1e6)
    with pytest.raises(FitDivergedError, match=r"the fit diverged in epoch [01] .*lower training\.learning_rates"):
        fit(module(learning_rates=rates), datamodule(), check_val_every_n_epoch=every)


def test_huge_errors() -> None:
    """Rates that leave all numbers finite: the best weights say it."""
    fitted, data = module(), datamodule()
    fit(fitted, data)
    check_best(fitted, data)
    with torch.no_grad():
        fitted.model.scale.mul_(1e6)
    with pytest.raises(FitDivergedError, match=r"its best weights predict the forces .* with a mean error of"):
        check_best(fitted, data)


def bad_label(atoms: Any) -> None:
    atoms.arrays["REF_forces"][1, 2] = np.nan


def one_place(atoms: Any) -> None:
    atoms.positions[1] = atoms.positions[0]


@pytest.mark.parametrize("damage", [bad_label, one_place])
@pytest.mark.parametrize("part", ["train", "valid"])
def test_one_structure_is_named(damage: Callable[[Any], None], part: str) -> None:
    data = datamodule()
    index = (data.train_indices if part == "train" else data.valid_indices)[0]
    structures = [a.copy() for a in STRUCTURES]
    damage(structures[index])
    data.set_round(0, structures)
    with pytest.raises(InputError) as error:
        fit(module(), data)
    assert not isinstance(error.value, FitDivergedError)
    assert f"counted from 0, {index} has no finite energy or forces" in str(error.value)
    assert "(1 in all)" in str(error.value)
