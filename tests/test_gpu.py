"""What runs on a real GPU gives what the CPU gives, in float64; skipped where there is none."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bias.bias_parts import batch_of, crystals, fitted_parts, molecules
from ubmd.bias.biased import BiasedPotential
from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.integrators.melchionna import Melchionna
from ubmd.dynamics.integrators.mtk import MTK
from ubmd.dynamics.state import WalkerState, initial_state
from ubmd.dynamics.stopping import StoppingRules
from ubmd.dynamics.walkers import run_walkers
from ubmd.selection import LCMD, MaxDet, MaxDiag, MaxDist, Pool
from ubmd.training.loss import SquaredLoss

ROOT = Path(__file__).parents[1]
GPU = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

POTENTIAL, UNCERTAINTY = fitted_parts()
BIASED = BiasedPotential(POTENTIAL, UNCERTAINTY, 0.25, tau_stress=0.5, species_weights={"H": 0.0})


def assert_close(found: Any, expected: Any, bound: float = 1e-9) -> None:
    """All tensors of two results, relative to the largest value of each."""
    if isinstance(expected, torch.Tensor):
        assert found.device.type == GPU
        found = found.cpu()
        if not expected.is_floating_point():
            assert torch.equal(found, expected)
            return
        scale = float(expected.abs().max()) if expected.numel() else 1.0
        torch.testing.assert_close(found, expected, rtol=0.0, atol=bound * max(scale, 1e-12), equal_nan=True)
    elif is_dataclass(expected) and not isinstance(expected, type):
        for f in fields(expected):
            assert_close(getattr(found, f.name), getattr(expected, f.name), bound)
    elif isinstance(expected, (list, tuple)):
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, bound)


@pytest.mark.parametrize("stress", [False, True])
@pytest.mark.parametrize("potential", [POTENTIAL, BIASED], ids=["plain", "biased"])
def test_predictions(potential: torch.nn.Module, stress: bool) -> None:
    batch = batch_of(crystals(3, 1))
    expected, moved = potential(batch, stress=stress), copy.deepcopy(potential).to(GPU)
    found = moved(batch.to(GPU), stress=stress)
    assert_close(found, expected)
    again = potential(batch, expected.memory, stress=stress)
    assert_close(moved(batch.to(GPU), found.memory, stress=stress), again)


def test_a_training_step() -> None:
    batch = batch_of(crystals(3, 1))
    labels = POTENTIAL(batch, stress=True)
    batch = batch.replace(energy=labels.energy + 1.0, forces=labels.forces * 1.1, stress=labels.stress * 0.9)

    def gradients(potential: Any, batch: Any) -> list[torch.Tensor]:
        loss = SquaredLoss(stress=0.1)(potential(batch, stress=True, training=True), batch)
        return list(torch.autograd.grad(loss, list(potential.parameters())))

    assert_close(gradients(copy.deepcopy(POTENTIAL).to(GPU), batch.to(GPU)), gradients(POTENTIAL, batch))


@pytest.mark.parametrize(
    "integrator",
    [Langevin(), Melchionna(temperature=300.0, bulk_modulus=100.0), MTK(temperature=300.0)],
    ids=lambda integrator: type(integrator).__name__,
)
def test_walkers(integrator: Any) -> None:
    starts = crystals(3, 3) if integrator.needs_stress else molecules(3, 3)
    start = initial_state(batch_of(starts), temperature=300.0, seeds=[0, 1, 2])
    rules = StoppingRules(uncertainty_threshold=1e3, max_steps=40)
    expected = run_walkers(start, BIASED, integrator, rules, frame_interval=10)
    there = WalkerState.from_state_dict(start.state_dict(), device=GPU)
    found = run_walkers(there, copy.deepcopy(BIASED).to(GPU), integrator, rules, frame_interval=10)
    assert found.steps.tolist() == expected.steps.tolist()
    assert torch.allclose(torch.as_tensor(found.positions), torch.as_tensor(expected.positions), atol=1e-7)


@pytest.mark.parametrize("selection", [MaxDiag(), MaxDet(), MaxDist(), LCMD()], ids=lambda s: type(s).__name__)
def test_selection(selection: Any) -> None:
    random = torch.Generator().manual_seed(3)
    pool = Pool(*(torch.rand(size, generator=random, dtype=torch.float64) for size in ((40,), (40, 6), (5, 6))))
    there = Pool(*(getattr(pool, f.name).to(GPU) for f in fields(pool)))
    assert torch.as_tensor(selection(there, 8, seed=0)).tolist() == torch.as_tensor(selection(pool, 8, seed=0)).tolist()


def test_learn_runs_and_ends(tmp_path: Path) -> None:
    """Two rounds with trainer.accelerator=gpu, and the potential of the run used there."""
    environment = os.environ | {"UBMD_RUNS": str(tmp_path / "runs"), "UBMD_CACHE": str(tmp_path / "data")}
    words = ["learn", "experiment=bulk_demo", "name=gpu", "trainer.accelerator=gpu", "logger=csv"]
    words += ["system.n_initial=6", "learning.max_structures=14", "learning.batch_size=4", "learning.max_rounds=2"]
    words += ["trainer.max_steps=40", "dynamics.n_walkers=3", "dynamics.stopping.max_steps=60", "bias.window=5"]
    words += ["data.test.sample.n_structures=10", "dynamics.frame_interval=2"]
    done = subprocess.run(
        [sys.executable, "-m", "ubmd", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode in (0, 3), done.stdout[-2000:] + done.stderr[-2000:]
    record = next((tmp_path / "runs").rglob("metrics.csv"))
    assert len(record.read_text().splitlines()) >= 3
