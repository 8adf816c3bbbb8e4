"""The state of the process around a label."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.isolation import isolated
from ubmd.reference.labelling import label_structures
from ubmd.reference.store import LabelStore


class Torch(Calculator):
    """A harmonic well by PyTorch's gradients, which leaves the process as it likes it."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        torch.set_default_dtype(torch.float64)
        os.environ["OF_THE_CALCULATOR"] = "1"
        os.chdir("/")
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        x = torch.tensor(self.atoms.positions, requires_grad=True)  # pyright: ignore
        energy = 0.5 * (x**2).sum(dim=(0, 1), keepdim=True)
        (gradient,) = torch.autograd.grad(energy.sum(), x)
        noise = torch.rand(1).item() + np.random.rand()  # noqa: NPY002
        self.results = {"energy": energy.detach() + noise, "forces": -gradient, "stress": np.eye(3)}


def state() -> list[object]:
    return [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        np.geterr(),
        random.getstate(),
        warnings.filters[:],
        logging.getLogger().level,
        logging.getLogger().handlers[:],
        logging.root.manager.disable,
        sys.stdout,
        os.getcwd(),
        dict(os.environ),
        signal.getsignal(signal.SIGTERM),
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_all_is_put_back(fails: bool, tmp_path: Path) -> None:
    with torch.inference_mode():
        before = state()
        try:
            with isolated(seed=1):
                assert torch.ones(2, requires_grad=True).sum().requires_grad
                torch.set_default_dtype(torch.float64)
                torch.set_default_device("meta")
                torch.set_num_threads(torch.get_num_threads() + 1)
                torch.use_deterministic_algorithms(True)
                torch.set_grad_enabled(False)
                np.seterr(all="raise")
                warnings.simplefilter("error")
                logging.disable(logging.CRITICAL)
                logging.getLogger().setLevel(1)
                logging.getLogger().addHandler(logging.NullHandler())
                sys.stdout = None
                os.chdir(tmp_path)
                os.environ["OF_THE_CALCULATOR"] = "1"
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                if fails:
                    raise KeyError
        except KeyError:
            assert fails
        assert state() == before


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    def drawn(seed: int) -> tuple[float, ...]:
        with isolated(seed):
            return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    first = drawn(1)
    torch.rand(3)
    random.random()
    assert drawn(1) == first
    assert not set(drawn(2)) & set(first)


def test_a_calculator_of_pytorch_where_gradients_are_off(tmp_path: Path) -> None:
    """As in a round, whose labels are computed in Lightning's prediction."""
    atoms = Atoms("H2", [[0, 0, 0], [1, 1, 0.5]], cell=np.eye(3) * 5, pbc=True)
    labels, before = [], state()
    for name in ("off", "on"):
        with torch.inference_mode(name == "off"), torch.set_grad_enabled(name == "on"):
            report = label_structures([atoms], ASEReference(Torch()), LabelStore(tmp_path / f"{name}.db"))
        labels.append(report.labelled[0])
    assert state() == before
    assert labels[0].info["REF_energy"] == labels[1].info["REF_energy"] > 1.125
    np.testing.assert_array_equal(labels[0].arrays["REF_forces"], -atoms.positions)
    np.testing.assert_array_equal(labels[0].info["REF_stress"], np.eye(3))
