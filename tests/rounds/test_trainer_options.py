from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from ubmd.commands.parts import fitting
from ubmd.errors import InputError
from ubmd.rounds.trainer_options import trainer_limits

DEFAULTS = {
    "_target_": "lightning.pytorch.Trainer",
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 10,
    "max_steps": -1,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": 0,
    "inference_mode": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def config(**options: Any) -> Any:
    return DEFAULTS | options


def check(**options: Any) -> None:
    fitting(OmegaConf.create({"trainer": config(**options)}), 1).check()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_steps": 100, "max_epochs": -1},
        {"max_steps": 100, "max_epochs": None},
        {"limit_val_batches": 1.0, "precision": "32-true", "fast_dev_run": False, "overfit_batches": 0.0},
        {"limit_train_batches": 3, "val_check_interval": 2, "profiler": "simple", "enable_checkpointing": False},
        {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value", "accumulate_grad_batches": 2},
        {"check_val_every_n_epoch": None, "val_check_interval": 3, "num_sanity_val_steps": 2},
        {"deterministic": True, "detect_anomaly": True, "enable_checkpointing": True, "log_every_n_steps": 1},
    ],
)
def test_possible(options: dict[str, Any]) -> None:
    check(**options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"fast_dev_run": True}, "trainer.fast_dev_run=True trains for a few batches"),
        ({"fast_dev_run": 2}, "trainer.fast_dev_run=2"),
        ({"barebones": True}, "trainer.barebones=True keeps no metrics"),
        ({"limit_val_batches": 0}, "trainer.limit_val_batches=0 leaves out"),
        ({"limit_val_batches": 1}, "trainer.limit_val_batches=1 leaves out"),
        ({"limit_test_batches": 0.5}, "trainer.limit_test_batches=0.5 leaves out"),
        ({"limit_predict_batches": 2}, "trainer.limit_predict_batches=2 leaves out"),
        ({"limit_train_batches": 0}, "trainer.limit_train_batches=0 trains on nothing"),
        ({"overfit_batches": 1}, "trainer.overfit_batches=1 validates with other"),
        ({"inference_mode": True}, "trainer.inference_mode=True allows no derivatives"),
        ({"precision": "bf16-mixed"}, "trainer.precision=bf16-mixed is chosen by dtype"),
        ({"val_check_interval": "00:01:00"}, "trainer.val_check_interval=00:01:00 must be"),
        ({"max_epochs": 0}, "trainer.max_epochs=0 must be"),
        ({"max_epochs": 2.5}, "trainer.max_epochs=2.5 must be"),
        ({"max_steps": 0}, "trainer.max_steps=0 must be"),
        ({"max_steps": "abc"}, "trainer.max_steps=abc must be"),
        ({"max_steps": True}, "trainer.max_steps=True must be"),
        ({"max_epochs": -1}, "set no limit"),
        ({"max_epochs": None}, "set no limit"),
        ({"check_val_every_n_epoch": 0}, "trainer.check_val_every_n_epoch=0 must be"),
        ({"check_val_every_n_epoch": None, "val_check_interval": 0.5}, "trainer: .*val_check_interval"),
        ({"gradient_clip_algorithm": "abc"}, "trainer: .*gradient_clip_algorithm"),
        ({"profiler": "abc"}, "trainer: .*profiler"),
        ({"nonsense": 1}, "trainer.*nonsense"),
    ],
)
def test_impossible(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        check(**options)
    assert "\n" not in str(error.value)


def test_a_fit_by_the_clock_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    check(max_time="00:00:10:00")
    assert "the same command may come to another result" in caplog.text


def test_validation_between_batches() -> None:
    trainer_limits(config(val_check_interval=4), 18, 5)
    with pytest.raises(InputError, match="val_check_interval=5 is more than the 4 batches of an epoch"):
        trainer_limits(config(val_check_interval=5), 18, 5)
    trainer_limits(config(val_check_interval=40, check_val_every_n_epoch=None), 18, 5)
    with pytest.raises(InputError, match="val_check_interval=41 is more than the 40 batches of the fit"):
        trainer_limits(config(val_check_interval=41, check_val_every_n_epoch=None), 18, 5)
    with pytest.raises(InputError, match="check_val_every_n_epoch=3 is more than the 2"):
        trainer_limits(config(max_steps=8, check_val_every_n_epoch=3), 18, 5)
    trainer_limits(config(max_steps=8, check_val_every_n_epoch=3, accumulate_grad_batches=2), 18, 5)
