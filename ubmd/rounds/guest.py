"""Loggers of services as guests of a run: what they cannot do is said once, and the run goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from lightning.pytorch.loggers import Logger

from ubmd.config import first_line

__all__ = ["Guest"]

log = logging.getLogger(__name__)


class Guest(Logger):
    """Before another logger among the bases: the first failure of its service is told, others are passed over.

    All that a run computes is in its folder. A server that is gone, a quota that is used up or a process that was
    killed is no reason to lose it.
    """

    service: ClassVar[str]
    """What messages call it."""
    packages: ClassVar[tuple[str, ...]]
    """Whose errors are the service's own."""
    told = False
    """Whether a failure was told."""

    @classmethod
    def fails(cls, error: Exception) -> bool:
        """Whether an error is one of the service's own, of its connection or of its files."""
        return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in cls.packages

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Within it an error of the service's is a warning, once a run."""
        try:
            yield
        except Exception as error:
            if not self.fails(error):
                raise
            if not self.told:
                log.warning(
                    "%s does not take what it is given (%s); the run goes on, and its folder has all results",
                    self.service,
                    first_line(error),
                )
            self.told = True

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """As Lightning's; a failure is told."""
        with self.tolerated():
            super().log_metrics(metrics, step)  # pyright: ignore[reportAbstractUsage]

    def log_hyperparams(self, params: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As Lightning's; a failure is told."""
        with self.tolerated():
            super().log_hyperparams(params)  # pyright: ignore[reportAbstractUsage]

    def finalize(self, status: str = "success") -> None:
        """As Lightning's; a failure is told."""
        with self.tolerated():
            super().finalize(status)
