"""TensorBoard and MLflow, callbacks by configuration, and the profiler of a fit."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path

import pytest
from omegaconf import DictConfig

from tests.commands.test_train import SMALL
from tests.training.test_module import alloys
from ubmd.cli import app
from ubmd.cli import main as cli
from ubmd.commands import loggers
from ubmd.data.io import write_structures
from ubmd.errors import InputError
from ubmd.rounds.artifacts import log_round

pytestmark = pytest.mark.usefixtures("quiet_logging")


def configured(folder: Path, *overrides: str) -> DictConfig:
    return app.compose("learn", ["experiment=bulk_demo", *overrides], folder=folder / "run")


def logged_twice(cfg: DictConfig) -> None:
    """A fit's step and a round, then, as of a run that is continued, the next ones."""
    for start in range(2):
        loggers.check_loggers(cfg)
        opened = loggers.open_loggers(cfg, Path(cfg.paths.run))
        for logger in opened:
            logger.log_metrics({"train/loss": 1.0 + start}, step=70 + start)
            logger.finalize("success")  # as Lightning does behind each fit
        log_round(opened, {"round": 3 + start, "n_train": 10, "n_valid": 2, "force_rmse_ev_per_ang": 0.5, "word": "x"})
        loggers.close_loggers(opened)


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged_twice(configured(tmp_path, "logger=tensorboard"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["al/force_rmse_ev_per_ang"] == [(3, 0.5), (4, 0.5)]
    assert found["train/loss"] == [(70, 1.0), (71, 2.0)]
    assert "al/word" not in found
    assert "dynamics.n_walkers: 8" in (tmp_path / "run" / "tensorboard" / "hparams.yaml").read_text()


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    cfg = configured(tmp_path, "logger=mlflow", "seed=1")
    logged_twice(cfg)
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("bulk_demo").experiment_id])
    assert run.info.run_id == (tmp_path / "run" / "mlflow_id.txt").read_text()
    assert (run.info.run_name, run.info.status) == (cfg.paths.run_name, "FINISHED")
    history = client.get_metric_history(run.info.run_id, "al/force_rmse_ev_per_ang")
    assert [(metric.step, metric.value) for metric in history] == [(3, 0.5), (4, 0.5)]
    assert run.data.params["dynamics.n_walkers"] == "8"
    assert not (tmp_path / "here" / "mlruns").exists()  # as there are no files


def test_what_a_server_does_not_take_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("mlflow")
    from ubmd.rounds.mlflow_logger import SteadyMLFlowLogger

    logger = SteadyMLFlowLogger(tracking_uri="http://localhost:1", run_id="0" * 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        for _ in range(2):
            logger.log_metrics({"a": 1.0})
        logger.close("success")
    assert caplog.text.count("mlflow does not take what it is given") == 1


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_logger_that_is_not_installed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda wanted: None if wanted == name else find_spec(wanted))
    with pytest.raises(InputError, match=rf"^logger={name} needs {name}.*pip install 'ubmd\[{name}\]'"):
        loggers.check_loggers(configured(tmp_path, f"logger={name}"))


def test_callbacks_and_the_profiler_of_a_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_structures("train.extxyz", alloys(12))
    stops = ["callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=1e9"]
    line = ["train", "data.train=train.extxyz", *SMALL, "trainer.max_epochs=9", "scheduler=constant", *stops]
    line += ["callbacks=[early_stopping,learning_rate]", "trainer.profiler=simple", f"hydra.run.dir={tmp_path}/run"]
    assert cli.main(line) == 0
    with (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").open() as file:
        rates = [float(row["lr/readout"]) for row in csv.DictReader(file) if row["lr/readout"]]
    assert rates == pytest.approx([0.03, 0.03])  # two epochs: nothing falls by so much
    profile = (tmp_path / "run" / "fit-profile.txt").read_text()
    assert "run_training_epoch" in profile
