"""What a run tells Weights & Biases: with a stand-in for its side, and once with itself, offline."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf
from wandb.errors import CommError

from ubmd import config, paths
from ubmd.callbacks.steps import CumulativeStep
from ubmd.commands.compare import compare
from ubmd.commands.loggers import check_loggers, close_loggers, open_loggers
from ubmd.errors import InputError
from ubmd.provenance import provenance
from ubmd.rounds.artifacts import log_results

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f0005fe02fe"
    "0def46b80000000049454e44ae426082"
)


class StandInRun:
    """wandb's side of a run: keeps what it is told."""

    def __init__(self, **given: Any):
        self.id, self.given = given["id"], given
        self.axes: dict[str, str | None] = {}
        self.logged: list[dict[str, Any]] = []
        self.artifacts: list[Any] = []
        self.told: dict[str, Any] = {}
        self.config = SimpleNamespace(update=lambda values, allow_val_change: self.told.update(values))

    def define_metric(self, name: str, step_metric: str | None = None, step_sync: bool | None = None) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "learning_curves.png").write_bytes(PNG)
    (tmp_path / "model.ckpt").write_bytes(b"weights")
    (tmp_path / "dataset.extxyz").write_text("1\n\nH 0 0 0\n")
    return {
        "figures": tmp_path / "figures",
        "potential": tmp_path / "model.ckpt",
        "dataset": tmp_path / "dataset.extxyz",
    }


def run_config(folder: Path) -> DictConfig:
    logger = OmegaConf.load(paths.config_dir() / "logger" / "wandb.yaml")
    run = {"run": str(folder), "run_name": "bias.tau-0.5+seed-1"}
    return OmegaConf.create({"name": "demo", "seed": 1, "bias": {"tau": 0.5}, "paths": run, "logger": logger})


def test_what_is_told(tmp_path: Path, results: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wandb.init", StandInRun)
    loggers = open_loggers(run_config(tmp_path), tmp_path)
    run = loggers[0].experiment
    assert run.given["group"] == "demo"
    assert list(run.given["tags"]) == ["bias.tau-0.5", "seed-1"]
    assert run.given["name"] == "bias.tau-0.5+seed-1"
    assert run.axes["al/*"] == "al/round"
    assert run.told["bias"] == {"tau": 0.5}
    assert run.told["provenance"]["git"] == provenance()["git"]
    loggers.append(CSVLogger(tmp_path / "csv"))
    log_results(loggers, **results)
    assert [list(entry) for entry in run.logged] == [["figures/learning_curves"]]
    assert {(a.name, a.type) for a in run.artifacts} == {(f"model-{run.id}", "model"), (f"dataset-{run.id}", "dataset")}
    assert {name for a in run.artifacts for name in a.manifest.entries} == {"model.ckpt", "dataset.extxyz"}
    run.artifacts.clear()
    log_results(loggers, figures=results["figures"], potential=results["potential"])
    assert [a.type for a in run.artifacts] == ["model"]


def test_other_loggers_are_left_alone(tmp_path: Path, results: dict[str, Path]) -> None:
    log_results([CSVLogger(tmp_path / "csv")], **results)
    assert not (tmp_path / "csv").exists()


def test_online_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("wandb.login", lambda **_: True)
    check_loggers(run_config(tmp_path))  # offline
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(InputError, match=r"needs a key of its own \(there is none\); set WANDB_API_KEY"):
        check_loggers(run_config(tmp_path))
    with pytest.raises(InputError, match="needs a key of its own"):
        compare(["--wandb", "me/ubmd"])
    monkeypatch.setenv("WANDB_API_KEY", "short-key7")
    with pytest.raises(InputError, match="needs a key of its own") as raised:
        check_loggers(run_config(tmp_path))
    assert "key7" not in str(raised.value)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    check_loggers(run_config(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'0123456789' * 4}\n")
    check_loggers(run_config(tmp_path))


@pytest.mark.parametrize("error", [CommError("no such host\nand so on"), ConnectionResetError("no such host")])
def test_a_server_that_is_not_there(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr("wandb.login", Refusal(error))
    check_loggers(run_config(tmp_path))  # offline
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(InputError, match=r"cannot be used \(no such host\); set WANDB_MODE=offline"):
        check_loggers(run_config(tmp_path))


def test_a_mode_that_wandb_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(InputError, match="WANDB_MODE=onlin is none of online, offline"):
        check_loggers(run_config(tmp_path))


class Refusal:
    """Raises an error, whatever it is asked."""

    def __init__(self, error: Exception):
        self.error = error

    def __call__(self, *_: Any, **__: Any) -> None:
        raise self.error


@pytest.mark.parametrize("error", [CommError("it timed out\nand so on"), PermissionError("it timed out")])
def test_a_run_that_wandb_refuses(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wandb.init", Refusal(error))
    with pytest.raises(InputError, match=r"wandb cannot start its run \(it timed out\); .* WANDB_MODE=offline"):
        open_loggers(run_config(tmp_path), tmp_path)


@pytest.mark.parametrize("error", [CommError("gone"), ConnectionResetError("gone")])
def test_what_wandb_cannot_take_stops_no_run(
    error: Exception,
    tmp_path: Path,
    results: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("wandb.init", StandInRun)
    (logger,) = open_loggers(run_config(tmp_path), tmp_path)
    for name in ("log", "log_artifact", "define_metric"):
        monkeypatch.setattr(logger.experiment, name, Refusal(error))
    monkeypatch.setattr(logger.experiment.config, "update", Refusal(error))
    monkeypatch.setattr("wandb.finish", Refusal(error))
    logger.log_metrics({"al/round": 1.0})
    logger.log_metrics({"al/round": 2.0}, step=3)
    logger.log_hyperparams({"a": 1})
    log_results([logger], **results)
    close_loggers([logger])
    (line,) = caplog.messages
    assert "(gone); the run goes on" in line


def test_other_errors_are_not_taken_for_those_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wandb.init", StandInRun)
    (logger,) = open_loggers(run_config(tmp_path), tmp_path)
    monkeypatch.setattr(logger.experiment, "log", Refusal(KeyError("a")))
    with pytest.raises(KeyError):
        logger.log_metrics({"al/round": 1.0})


@pytest.mark.slow
def test_offline(tmp_path: Path, results: dict[str, Path]) -> None:
    loggers = open_loggers(run_config(tmp_path), tmp_path)
    try:
        name = loggers[0].experiment.id
        log_results(loggers, **results)
    finally:
        close_loggers(loggers)
    (record,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    words = (f"model-{name}", f"dataset-{name}", "provenance", "bias.tau-0.5", "figures/learning_curves")
    for _ in range(120):  # wandb's own process may still be writing
        missing = [word for word in words if word.encode() not in record.read_bytes()]
        if not missing:
            break
        time.sleep(0.25)
    assert not missing


@pytest.mark.parametrize(
    ("name", "tags"),
    [("default", ["default"]), ("a-1+b-2", ["a-1", "b-2"]), ("k-" + "x" * 80, ["k-" + "x" * 62])],
)
def test_tags(name: str, tags: list[str]) -> None:
    assert config.run_tags(name) == tags


class Line(LightningModule):
    """A fit of four steps in two epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any) -> torch.Tensor:
        loss = (self.weight - batch[0].mean()) ** 2
        self.log("train/loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: Any) -> None:
        self.log("valid/loss", self.weight)

    def test_step(self, batch: Any) -> None:
        self.log("test/loss", self.weight)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_cumulative_step(tmp_path: Path) -> None:
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 1)), batch_size=2)
    logger = CSVLogger(tmp_path, name="csv", version=0)
    before = 0
    for _ in range(3):
        callback = CumulativeStep(before)
        trainer = Trainer(
            max_epochs=2,
            logger=logger,
            callbacks=[callback],
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
        )
        module = Line()
        trainer.fit(module, data, data)
        trainer.test(module, data, verbose=False)
        assert trainer.global_step == 4
        before += trainer.global_step
    logger.save()
    header, *lines = [line.split(",") for line in (tmp_path / "csv/version_0/metrics.csv").read_text().splitlines()]
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    for name, steps in {
        "train/loss": [2, 4, 6, 8, 10, 12],
        "valid/loss": [2, 4, 6, 8, 10, 12],
        "test/loss": [4, 8, 12],
    }.items():
        assert [int(row["step"]) for row in rows if row[name]] == steps
