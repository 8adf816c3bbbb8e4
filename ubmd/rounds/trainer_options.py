"""Options of Lightning's trainer that fits of potentials can do with, and how long a fit is."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Trainer

from ubmd.errors import InputError

__all__ = ["check_trainer_options", "trainer_limits"]

log = logging.getLogger(__name__)


def check_trainer_options(trainer: Mapping[str, Any], make: Callable[..., Trainer]) -> None:
    """Refuses, before any work, a trainer that leaves a fit without its best weights or its numbers without meaning.

    Args:
        trainer: its options.
        make: makes it.

    Raises:
        InputError: for the first one.
    """
    for name in ("max_epochs", "max_steps"):
        limit = trainer.get(name)
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < -1 or limit == 0):
            raise InputError(f"trainer.{name}={limit} must be a positive whole number, or -1 for no limit")
    if trainer.get("max_epochs") in (None, -1) and trainer.get("max_steps", -1) in (None, -1):
        raise InputError(
            "trainer.max_epochs and trainer.max_steps set no limit; learning rates decay over it: give one"
        )
    every = trainer.get("check_val_every_n_epoch", 1)
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise InputError(f"trainer.check_val_every_n_epoch={every} must be a whole number, at least 1")
    for name, least in (("gradient_clip_val", 0.0), ("accumulate_grad_batches", 1), ("log_every_n_steps", 0)):
        value = trainer.get(name)
        if isinstance(value, int | float) and not least <= value < math.inf:
            raise InputError(f"trainer.{name}={value} must be at least {least:g}")
    for name, why in REFUSED.items():
        value = trainer.get(name)
        if value is not None and not _is_default(name, value):
            raise InputError(f"trainer.{name}={value} {why}")
    if (time := trainer.get("max_time")) is not None:
        log.warning("trainer.max_time=%s ends fits by the clock; the same command may come to another result", time)
    try:
        make(callbacks=[], logger=False, enable_checkpointing=False)
    except Exception as error:  # Lightning's own checks, of several kinds
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"trainer: {reason}") from error


REFUSED = {
    "fast_dev_run": "trains for a few batches without keeping weights; use trainer.max_epochs=1",
    "barebones": "keeps no metrics, by which the best weights are chosen; leave it out",
    "overfit_batches": "validates with other structures than those that are held back; leave it out",
    "limit_val_batches": "leaves out structures that validate and calibrate; leave it out",
    "limit_predict_batches": "leaves out structures that calibrate; leave it out",
    "limit_test_batches": "leaves out structures of the test set; leave it out",
    "limit_train_batches": "trains on nothing; leave it out",
    "inference_mode": "allows no derivatives, which forces are; set it to false",
    "precision": "is chosen by dtype=float32 or dtype=float64; leave it out",
    "val_check_interval": "must be a share of an epoch or a number of batches; the clock differs each time",
}
"""Options with what they would do; see :func:`_is_default` for the values that are allowed."""


def _is_default(name: str, value: Any) -> bool:
    """Whether a value does what is done without the option, or no harm."""
    if name.startswith("limit_") and name != "limit_train_batches":
        return isinstance(value, float) and value == 1.0
    if name == "limit_train_batches":
        return value != 0
    if name == "precision":
        return str(value) in ("32", "32-true")
    if name == "val_check_interval":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return not value


def trainer_limits(trainer: Mapping[str, Any], n_train: int, batch_size: int, share: float = 1.0) -> dict[str, int]:
    """The trainer's ``max_epochs`` and ``max_steps`` for a share of them, rounded up; -1 stays -1.

    Raises:
        InputError: if a fit to ``n_train`` structures in batches of ``batch_size`` would end before its first
            validation, and so without best weights.
    """
    limits = {}
    for name in ("max_epochs", "max_steps"):
        limit = trainer.get(name)
        if limit is not None:
            limits[name] = math.ceil(share * limit) if limit > 0 else limit
    every = trainer.get("check_val_every_n_epoch", 1)
    batches = math.ceil(n_train / min(batch_size, n_train))
    steps_an_epoch = math.ceil(batches / int(trainer.get("accumulate_grad_batches") or 1))
    epochs = [limits.get("max_epochs", -1), limits.get("max_steps", -1) / steps_an_epoch]
    fewest = min((n for n in epochs if n >= 0), default=math.inf)
    if every is not None and fewest < every:
        raise InputError(
            f"trainer.check_val_every_n_epoch={every} is more than the {fewest:g} epochs that trainer.max_epochs and "
            "trainer.max_steps allow for; lower it or train longer"
        )
    interval = trainer.get("val_check_interval")
    most = batches if every is not None else fewest * batches
    if isinstance(interval, int) and interval > most:
        raise InputError(
            f"trainer.val_check_interval={interval} is more than the {most:g} batches of "
            f"{'an epoch' if every is not None else 'the fit'} to {n_train} structures; lower it"
        )
    return limits
