"""The loggers of a run, opened so that a continued run goes on where it stopped."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from ubmd.config import plain, provenance
from ubmd.files import write_text
from ubmd.secrecy import hidden

__all__ = ["close_loggers", "open_loggers"]


def open_loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    """The loggers of ``cfg.logger``; wandb continues the run whose id is in the run folder."""
    out: list[Logger] = []
    for config in (cfg.get("logger") or {}).values():
        if config._target_.endswith("WandbLogger"):
            file = folder / "wandb_id.txt"
            if not file.exists():
                write_text(file, secrets.token_hex(4))
            if config.get("offline"):
                # wandb's remarks are about syncing, which an offline run does later
                os.environ.setdefault("WANDB_SILENT", "true")
            logger = instantiate(config, id=file.read_text(encoding="utf-8").strip(), resume="allow")
            # Lightning hands on a setting that wandb has given up, and wandb would say so in every run
            logger._wandb_init.pop("anonymous", None)
            logger.experiment.define_metric("al/round")
            logger.experiment.define_metric("al/*", step_metric="al/round")
            logger.experiment.config.update(hidden(plain(cfg)) | {"provenance": provenance()}, allow_val_change=True)
        else:
            logger = instantiate(config)
        out.append(logger)
    return out


def close_loggers(loggers: Sequence[Logger]) -> None:
    """Writes what is still to be written; wandb's run ends."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            import wandb

            wandb.finish()
