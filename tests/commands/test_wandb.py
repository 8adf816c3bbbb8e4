"""What a run tells Weights & Biases: with a stand-in for its side, and once with itself, offline."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf
from wandb.errors import CommError

from ubmd import config, paths
from ubmd.analysis.numbers import write_numbers
from ubmd.callbacks.steps import CumulativeStep
from ubmd.cli import app
from ubmd.commands.compare import compare
from ubmd.commands.loggers import check_loggers, close_loggers, open_loggers
from ubmd.errors import InputError
from ubmd.provenance import provenance
from ubmd.rounds.artifacts import log_folder, log_inputs, log_results, log_round

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f0005fe02fe"
    "0def46b80000000049454e44ae426082"
)


class StandInRun:
    """wandb's side of a run: keeps what it is told."""

    def __init__(self, **given: Any):
        self.id, self.name, self.given = given.get("id", "of-the-agent"), given.get("name"), given
        self.offline, self.used = False, []
        self.axes: dict[str, str | None] = {}
        self.logged: list[dict[str, Any]] = []
        self.artifacts: list[Any] = []
        self.told: dict[str, Any] = {}
        self.config = SimpleNamespace(update=lambda values, allow_val_change: self.told.update(values))

    def define_metric(self, name: str, step_metric: str | None = None, step_sync: bool | None = None) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def use_artifact(self, artifact: Any) -> None:
        self.used.append(artifact)

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "learning_curves.png").write_bytes(PNG)
    (tmp_path / "model.ckpt").write_bytes(b"weights")
    (tmp_path / "dataset.extxyz").write_text("1\n\nH 0 0 0\n")
    write_numbers(tmp_path / "figures" / "calibration.csv", {"error": [0.1, 0.2], "uncertainty": [0.3, 0.4]})
    return {
        "figures": tmp_path / "figures",
        "potential": tmp_path / "model.ckpt",
        "dataset": tmp_path / "dataset.extxyz",
    }


ROUNDS = [{"round": 0, "n_train": 7, "n_valid": 1}, {"round": 1, "n_train": 21, "n_valid": 3, "coverage": 0.5}]


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
    log_results(loggers, **results, rounds=ROUNDS)
    logged = {key: value for entry in run.logged for key, value in entry.items()}
    assert set(logged) == {"figures/learning_curves", "tables/rounds", "tables/calibration"}
    assert logged["tables/rounds"].columns == ["round", "n_train", "n_valid", "coverage"]
    assert logged["tables/rounds"].data == [[0, 7, 1, None], [1, 21, 3, 0.5]]
    assert logged["tables/calibration"].data == [[0.1, 0.3], [0.2, 0.4]]
    assert [a.type for a in run.artifacts] == ["dataset", "model"]
    assert {name for a in run.artifacts for name in a.manifest.entries} == {"model.ckpt", "dataset.extxyz"}
    assert run.artifacts[1].metadata == {"run": "bias.tau-0.5+seed-1", **ROUNDS[-1]}
    run.artifacts.clear()
    log_results(loggers, figures=results["figures"], potential=results["potential"])
    assert [a.type for a in run.artifacts] == ["model"]


def test_rounds_are_drawn_against_structures_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wandb.init", StandInRun)
    wandb, plain = open_loggers(run_config(tmp_path), tmp_path)[0], CSVLogger(tmp_path / "csv")
    log_round([wandb, plain], {"round": 2, "n_train": 21, "n_valid": 3, "coverage": 0.5, "md_steps": 100, "cause": "x"})
    (logged,) = wandb.experiment.logged
    assert logged["al/n_structures"] == 24
    assert logged["by_structures/coverage"] == logged["al/coverage"] == 0.5
    assert wandb.experiment.axes["by_structures/*"] == "al/n_structures"
    assert {name for name in logged if name.startswith("by_")} == {"by_structures/coverage"}
    plain.save()
    header = (tmp_path / "csv/lightning_logs/version_0/metrics.csv").read_text().splitlines()[0]
    assert set(header.split(",")) == {"step", "al/round", "al/n_train", "al/n_valid", "al/coverage", "al/md_steps"}


def test_what_a_run_makes_another_one_uses(
    tmp_path: Path, results: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same name and digest, by which wandb knows that it is the same; elsewhere the file has another name."""
    monkeypatch.setattr("wandb.init", StandInRun)
    maker = open_loggers(run_config(tmp_path), tmp_path)
    log_results(maker, **results)
    moved = results["dataset"].rename(tmp_path / "mine.extxyz")
    data = {"train": [str(moved)], "valid": 0.1, "test": None}
    cfg = OmegaConf.merge(run_config(tmp_path / "user"), {"data": data})
    user = open_loggers(cfg, tmp_path / "user")
    (used,) = user[0].experiment.used
    made = maker[0].experiment.artifacts[0]
    assert (used.name, used.type, used.digest) == (made.name, "dataset", made.digest)
    assert [entry.ref for entry in used.manifest.entries.values()] == [moved.as_uri()]
    user[0].experiment.offline = True
    user[0].experiment.used.clear()
    log_inputs(user, {moved: "dataset"})
    assert user[0].experiment.used == []


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
    log_folder([logger], tmp_path)
    close_loggers([logger])
    (line,) = caplog.messages
    assert "(gone); the run goes on" in line


def test_other_errors_are_not_taken_for_those_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wandb.init", StandInRun)
    (logger,) = open_loggers(run_config(tmp_path), tmp_path)
    monkeypatch.setattr(logger.experiment, "log", Refusal(KeyError("a")))
    with pytest.raises(KeyError):
        logger.log_metrics({"al/round": 1.0})


def records(file: Path) -> list[Any]:
    """What wandb's own process wrote into the file of an offline run so far.

    After seven bytes of its own it is a log in LevelDB's format: blocks of 32 KiB, in which no header (checksum,
    length, 1: whole, 2: first, 3: middle or 4: last part of a record) is split.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, found, parts = file.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        part, place = data[place + 7 : place + 7 + length], place + 7 + length
        parts = part if kind in (1, 2) else parts + part
        if kind in (1, 4) and place <= len(data):
            found.append(Record.FromString(parts))
    return found


def written(folder: Path) -> list[Any]:
    """The records of the run in a folder, once wandb's process has ended it."""
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    for _ in range(120):
        found = records(file)
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.25)
    raise AssertionError("wandb's process has not ended the run")


@pytest.mark.slow
def test_offline(tmp_path: Path, results: dict[str, Path]) -> None:
    loggers = open_loggers(run_config(tmp_path), tmp_path)
    try:
        name = loggers[0].experiment.id
        log_round(loggers, ROUNDS[1])
        log_results(loggers, **results, rounds=ROUNDS)
        log_folder(loggers, tmp_path)
    finally:
        close_loggers(loggers)
    found = written(tmp_path)
    (run,) = [record.run for record in found if record.HasField("run")][:1]
    assert (run.run_id, run.run_group, run.display_name) == (name, "demo", "bias.tau-0.5+seed-1")
    axes = {r.metric.glob_name or r.metric.name: r.metric.step_metric for r in found if r.HasField("metric")}
    assert axes["al/*"] == "al/round"
    assert axes["by_structures/*"] == "al/n_structures"
    items = [item for record in found if record.HasField("history") for item in record.history.item]
    values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
    assert values["al/coverage"] == values["by_structures/coverage"] == 0.5
    assert values["tables/rounds/_type"] == "table-file"
    assert values["figures/learning_curves/_type"] == "images/separated"
    assert {record.artifact.type for record in found if record.HasField("artifact")} >= {"dataset", "model", "run"}
    told = {item.key for record in found if record.HasField("config") for item in record.config.update}
    assert {"provenance", "bias"} <= told


@pytest.mark.slow
def test_a_run_of_a_sweep_of_wandb(tmp_path: Path) -> None:
    """The agent says in the environment which run it is, and what of its configuration the sweep has chosen."""
    (tmp_path / "chosen.yaml").write_text("wandb_version: 1\nbias.tau: {value: 0.5}\n")
    OmegaConf.save(run_config(tmp_path), tmp_path / "run.yaml", resolve=False)
    code = """\
        import sys
        from pathlib import Path
        from omegaconf import OmegaConf
        from ubmd.commands.loggers import close_loggers, open_loggers
        folder = Path(sys.argv[1])
        close_loggers(open_loggers(OmegaConf.load(folder / "run.yaml"), folder))
        """
    agent = {"WANDB_SWEEP_ID": "sweep123", "WANDB_RUN_ID": "run45678", "WANDB_PROJECT": "of-the-sweep"}
    environment = os.environ | agent | {"WANDB_SWEEP_PARAM_PATH": str(tmp_path / "chosen.yaml")}
    subprocess.run([sys.executable, "-c", dedent(code), str(tmp_path)], check=True, env=environment, cwd=tmp_path)
    (run, *_) = [record.run for record in written(tmp_path) if record.HasField("run")]
    assert (run.run_id, run.sweep_id, run.project) == ("run45678", "sweep123", "of-the-sweep")
    assert run.run_group == "demo"


def test_the_sweep_that_comes_with_ubmd() -> None:
    """What an agent would start, by wandb's own functions."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = OmegaConf.to_container(OmegaConf.load(paths.config_dir() / "wandb" / "sweep_tau.yaml"), resolve=False)
    assert isinstance(sweep, dict)
    chosen = {name: {"value": choice["values"][-1]} for name, choice in sweep["parameters"].items()}
    given = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    program, command, *words = create_sweep_command(sweep["command"])
    assert (program, words.pop()) == ("ubmd", "${args_no_hyphens}")
    cfg = app.compose(command, [*words, *given])
    assert (cfg.bias.tau, cfg.seed, list(cfg.logger)) == (0.5, 2, ["wandb"])


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
