"""MLflow as a guest of a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import MLFlowLogger

from ubmd.rounds.guest import Guest

__all__ = ["SteadyMLFlowLogger"]


class SteadyMLFlowLogger(Guest, MLFlowLogger):
    """Lightning's logger of MLflow that never stops a run.

    After a failure it tries no more: each attempt to reach a server that is gone takes a while.
    """

    service = "mlflow"
    packages = ("mlflow", "requests", "urllib3", "sqlalchemy")

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """As Lightning's; a failure is told."""
        if not self.told:
            super().log_metrics(metrics, step)

    def finalize(self, status: str = "success") -> None:
        """Nothing: Lightning calls this at the end of every fit, of which a run has several."""

    def close(self, status: str) -> None:
        """Ends the run in MLflow, ``success`` or ``failed``."""
        if not self.told:
            super().finalize(status)
