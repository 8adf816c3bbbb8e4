"""Objects that several commands build from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, OmegaConf

from ubmd.config import build, plain
from ubmd.errors import InputError
from ubmd.models.scale_shift import make_model
from ubmd.rounds.fit import Fitting
from ubmd.rounds.run import Calibration, Potentials
from ubmd.runs.finding import potential_file
from ubmd.training.module import PotentialModule
from ubmd.uncertainty.parts import check_parts

__all__ = ["checked_dtype", "checked_seed", "fitting", "label_options", "potentials", "take_potentials"]


def checked_seed(cfg: DictConfig) -> int:
    """``cfg.seed``; InputError if no random stream has it."""
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise InputError(f"seed={cfg.seed} must be zero or a positive whole number")
    return cfg.seed


def checked_dtype(cfg: DictConfig) -> torch.dtype:
    """The precision that ``cfg.dtype`` names; InputError for one that ubmd does not compute in."""
    if cfg.dtype not in ("float32", "float64"):
        raise InputError(f"dtype={cfg.dtype} must be float32 or float64")
    return getattr(torch, cfg.dtype)


def label_options(cfg: DictConfig) -> dict[str, Any]:
    """What ``cfg.data`` says of the labels of foreign files, for those who read them."""
    return {name: build(cfg, f"data.{name}") for name in ("keys", "units") if cfg.data.get(name) is not None}


def take_potentials(cfg: DictConfig) -> None:
    """Puts, in place of run folders that are named where a potential's file belongs, that file.

    The configuration that a run keeps thus says which it was.

    Raises:
        InputError: such a folder has none.
    """
    for key in ("potential", "training.start", *(f"members[{n}]" for n in range(len(cfg.get("members") or ())))):
        value = OmegaConf.select(cfg, key)
        if isinstance(value, str) and Path(value).is_dir():
            try:
                OmegaConf.update(cfg, key, str(potential_file(value)))
            except InputError as error:
                raise InputError(f"{key}={error}") from error


def fitting(cfg: DictConfig, checkpoint_epochs: int, key: str = "checkpoint_epochs") -> Fitting:
    """How ``cfg.trainer`` and ``cfg.callbacks`` say that potentials are fitted.

    Raises:
        InputError: ``checkpoint_epochs``, which the user knows as ``key``, is below one.
    """
    if checkpoint_epochs < 1:
        raise InputError(f"{key}={checkpoint_epochs} must be at least 1")
    return Fitting(partial(_trainer, cfg.trainer), plain(cfg.trainer), partial(_callbacks, cfg), checkpoint_epochs)


def _trainer(node: DictConfig, *, plugins: Sequence[Any] = (), **options: Any) -> Trainer:
    own = [instantiate(plugin) for plugin in node.get("plugins") or []]
    return instantiate(node, plugins=[*own, *plugins], **options)


def _callbacks(cfg: DictConfig) -> list[Callback]:
    return [build(cfg, f"callbacks.{name}") for name in cfg.get("callbacks") or ()]


def _training(cfg: DictConfig) -> Callable[..., PotentialModule]:
    """Makes the training module of a model, with the optimizer and the scheduler that are chosen."""
    return partial(build, cfg, "training", optimizer=build(cfg, "optimizer"), scheduler=build(cfg, "scheduler"))


def potentials(cfg: DictConfig, species: Sequence[str]) -> Potentials:
    """How ``cfg`` says that potentials of some species are made.

    Raises:
        InputError: for a model or an uncertainty that the file of a potential cannot hold, and for calibrations that
            cannot be.
    """
    for part in ("model", "uncertainty"):
        check_parts(plain(cfg[part]), part)
    return Potentials(
        model=partial(build, cfg, "model", complete=make_model),
        training=_training(cfg),
        uncertainty=partial(build, cfg, "uncertainty"),
        calibration=Calibration(*(build(cfg, f"calibration.{part}") for part in ("atomic", "total", "evidence"))),
        dtype=checked_dtype(cfg),
        configs={
            "model_config": plain(cfg.model) | {"_partial_": False, "species": list(species)},
            "uncertainty_config": plain(cfg.uncertainty),
        },
    )
