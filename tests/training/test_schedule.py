"""Optimizers and schedulers of PyTorch, chosen by configuration."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, OneCycleLR, StepLR

from ubmd import paths
from ubmd.cli.app import compose
from ubmd.commands.parts import potentials
from ubmd.errors import InputError
from ubmd.training.schedule import LinearDecay, schedule

TINY = ("model.n_basis=2", "model.n_gauss=4", "model.hidden=[4]")


def rates(make: Any, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = schedule(make, optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def test_linear_decay() -> None:
    assert rates(LinearDecay, 4) == [0.5, 0.375, 0.25, 0.125, 0.0]
    assert rates(LinearDecay, 7) == pytest.approx(rates(partial(LinearLR, start_factor=1.0, end_factor=0.0), 7))


def test_schedulers_are_told_the_length_of_the_fit() -> None:
    assert rates(CosineAnnealingLR, 4) == pytest.approx([0.5, 0.4267766952966369, 0.25, 0.0732233047033631, 0.0])
    assert rates(partial(CosineAnnealingLR, T_max=2), 2)[-1] == pytest.approx(0.0)
    assert rates(partial(ConstantLR, factor=1.0), 3) == [0.5] * 4
    assert rates(partial(OneCycleLR, max_lr=1.0), 10)[2] == pytest.approx(1.0)
    assert rates(partial(StepLR, step_size=2, gamma=0.1), 3) == pytest.approx([0.5, 0.5, 0.05, 0.05])


def test_a_scheduler_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"scheduler: .*step_size"):
        rates(StepLR, 3)


def module(tmp_path: Path, *overrides: str) -> Any:
    cfg = compose("train", ["data.train=none.extxyz", *TINY, *overrides], folder=tmp_path)
    made = potentials(cfg, ["H"])
    return made.training(model=made.model(species=["H"]))


@pytest.mark.parametrize("scheduler", sorted(f.stem for f in (paths.config_dir() / "scheduler").glob("*.yaml")))
@pytest.mark.parametrize("optimizer", sorted(f.stem for f in (paths.config_dir() / "optimizer").glob("*.yaml")))
def test_all_choices_can_be_made(optimizer: str, scheduler: str, tmp_path: Path) -> None:
    made = module(tmp_path, f"optimizer={optimizer}", f"scheduler={scheduler}")
    assert type(made._optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}])).__name__.lower() == optimizer


def test_what_torch_refuses_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"optimizer: Invalid beta parameter at index 0: 2"):
        module(tmp_path, "optimizer.betas=[2,0.9]")
