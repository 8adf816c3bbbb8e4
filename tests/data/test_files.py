from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from ubmd.data.files import DataFiles
from ubmd.data.io import write_structures
from ubmd.errors import InputError


def pair(symbols: str = "H2", **info: object) -> Atoms:
    atoms = Atoms(symbols, [[0, 0, 0], [0, 0, 0.8]])
    atoms.info = {"REF_energy": -1.0, **info}
    atoms.arrays["REF_forces"] = np.zeros((2, 3))
    return atoms


def files(tmp_path: Path, **parts: list[Atoms]) -> DataFiles:
    for name, structures in parts.items():
        write_structures(tmp_path / f"{name}.extxyz", structures)
    return DataFiles(**{name: str(tmp_path / f"{name}.extxyz") for name in parts})  # pyright: ignore


@pytest.mark.parametrize("part", ["valid", "test"])
def test_elements_that_nothing_is_learned_about(tmp_path: Path, part: str) -> None:
    data = files(tmp_path, train=[pair()] * 4, **{part: [pair(), pair("HF")]})
    module = data.datamodule(cutoff=3.0, species=data.symbols, stress=False, dtype=torch.float32, seed=0)
    with pytest.raises(InputError, match=f"a structure of data.{part} contains F, which no structure to train on"):
        data.check_trained(module)


def test_an_element_drawn_for_validation(tmp_path: Path) -> None:
    data = files(tmp_path, train=[pair(), pair("HF")])
    module = data.datamodule(cutoff=3.0, species=data.symbols, stress=False, dtype=torch.float32, seed=0)
    foreign = {"F": 0, "H": 1}[module.structures[module.valid_indices[0]].get_chemical_symbols()[1]]
    if foreign == 0:
        with pytest.raises(InputError, match="drawn for validation with seed=0, contains F"):
            data.check_trained(module)
    else:
        data.check_trained(module)


def test_several_charges_and_spins_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"cutoff": 3.0, "species": ["H"], "stress": False, "dtype": torch.float32, "seed": 0}
    same = [pair(charge=1, spin=2), pair(charge=1, spin=2)]
    files(tmp_path, train=same).datamodule(**options)  # pyright: ignore
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    magnetic = pair()
    magnetic.set_initial_magnetic_moments([1.0, 1.0])
    files(tmp_path, train=[pair(charge=1), pair(), magnetic]).datamodule(**options)  # pyright: ignore
    assert "several charges (0, 1), which the model cannot tell apart" in caplog.text
    assert "several numbers of unpaired electrons (0, 2), which" in caplog.text
