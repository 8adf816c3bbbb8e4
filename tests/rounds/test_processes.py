"""Several processes that train together come to what one comes to, and end however they end."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.rounds import test_resumed_fits as fits
from ubmd import interruption
from ubmd.callbacks import checkpoint
from ubmd.commands.parts import fitting
from ubmd.errors import InputError
from ubmd.rounds.processes import Together, together

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches", "ignore:The '.*_dataloader' does not")


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted and continued, with averaged weights; of 18 structures, one is left for the second mini-batch."""
    options = fits.OPTIONS["averaged"] | {"dtype": torch.float64, "batch_size": 17}
    options |= {"trainer": {"max_epochs": 5, "gradient_clip_val": 1.0}}
    monkeypatch.setitem(fits.OPTIONS, "one", options)
    several = {"trainer": options["trainer"] | {"devices": 2, "strategy": "ddp"}}
    monkeypatch.setitem(fits.OPTIONS, "two", options | several)
    monkeypatch.setattr(checkpoint, "GRACE", 1e6)
    log, again, threads = fits.Log(), fits.Log(), torch.get_num_threads()
    fit, weights = fits.one_fit(tmp_path / "one", "one", fits.Trace(), log, 100)
    with pytest.raises(interruption.Interrupted), interruption.handled():
        fits.one_fit(tmp_path / "two", "two", fits.Trace(), again, 100, fits.Signal())
    assert not torch.distributed.is_initialized()
    found, found_weights = fits.one_fit(tmp_path / "two", "two", fits.Trace(), again, 100)
    assert again.values == pytest.approx(log.values, rel=2e-6)  # metrics are in single precision
    assert sum("train/loss" in key for _, key in log.values) == 5
    assert found.errors == pytest.approx(fit.errors, rel=2e-6)
    assert found.steps == fit.steps == 10
    for name, value in weights.items():
        torch.testing.assert_close(found_weights[name], value, rtol=0, atol=1e-12)
    assert torch.get_num_threads() == threads


def fail(folder: Path, member: Together) -> None:
    (folder / "threads").write_text(f"{torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']}")
    raise ArithmeticError(f"process {member.global_rank()} of {member.world_size()}")


@pytest.mark.slow
def test_what_ended_another_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cut off") as caught, together(2, partial(fail, tmp_path)):
        raise RuntimeError("cut off")
    (note,) = caught.value.__notes__
    assert note.startswith("training process 2 of 2: Traceback")
    assert "ArithmeticError: process 1 of 2" in note
    assert (tmp_path / "threads").read_text() == "1 1"


def test_a_fit_that_cannot_be_sent() -> None:
    with pytest.raises(InputError, match=r"cannot be sent to another process.*trainer\.devices=1"), together(2, print_):
        raise AssertionError


print_: Any = lambda member: None  # noqa: E731


def test_more_processes_than_a_mini_batch_serves() -> None:
    cfg = OmegaConf.create({"trainer": {"accelerator": "cpu", "devices": 3, "max_epochs": 2}})
    fits_together = fitting(cfg, 1)
    assert fits_together.limits(10, 3)
    for n_train, batch_size in ((10, 2), (2, 10)):
        with pytest.raises(InputError, match=r"trainer\.devices=3 are 3 processes, .* mini-batch of 2 structures"):
            fits_together.limits(n_train, batch_size)
