"""Weights & Biases as a guest of a run: what it cannot do is said once, and the run goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from ubmd.config import first_line

__all__ = ["SteadyWandbLogger", "of_wandb"]

log = logging.getLogger(__name__)


def of_wandb(error: Exception) -> bool:
    """Whether an error is one of wandb's own, of its connection or of its files."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "wandb"


class SteadyWandbLogger(WandbLogger):
    """Lightning's logger of Weights & Biases that never stops a run: the first failure is told, others are passed over.

    All that a run computes is in its folder. A server that is gone, a quota that is used up or a process of wandb's
    that was killed is no reason to lose it.
    """

    told = False
    """Whether a failure was told."""

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Within it an error of wandb's is a warning, once a run."""
        try:
            yield
        except Exception as error:
            if not of_wandb(error):
                raise
            if not self.told:
                log.warning(
                    "wandb does not take what it is given (%s); the run goes on, and its folder has all results",
                    first_line(error),
                )
            self.told = True

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """As Lightning's; a failure is told."""
        with self.tolerated():
            super().log_metrics(metrics, step)

    def log_hyperparams(self, params: Any) -> None:
        """As Lightning's; a failure is told."""
        with self.tolerated():
            super().log_hyperparams(params)

    def finalize(self, status: str) -> None:
        """As Lightning's; a failure is told."""
        with self.tolerated():
            super().finalize(status)
