"""The loggers of a run, opened so that a continued run goes on where it stopped."""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, Logger
from omegaconf import DictConfig, ListConfig, OmegaConf

from ubmd.config import first_line, plain
from ubmd.errors import InputError
from ubmd.files import locked, write_text
from ubmd.provenance import provenance
from ubmd.rounds.artifacts import BY_STRUCTURES, STRUCTURES, log_inputs
from ubmd.rounds.mlflow_logger import SteadyMLFlowLogger
from ubmd.rounds.wandb_logger import SteadyWandbLogger, of_wandb
from ubmd.runs.continuation import flatten
from ubmd.secrecy import hidden

__all__ = ["check_loggers", "close_loggers", "open_loggers", "wandb_id"]

log = logging.getLogger(__name__)


MODES = ("online", "offline", "disabled", "shared", "run", "dryrun")
"""What wandb takes as ``WANDB_MODE``."""

INPUTS = {"system.structure": "dataset", "system.initial": "dataset", "training.start": "model"} | dict.fromkeys(
    ("data.train", "data.valid", "data.test"), "dataset"
)
"""Keys that may name files, or lists of them, that are told wandb."""


PACKAGES = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow"}
"""What loggers of Lightning need that it does not bring."""


def check_loggers(cfg: DictConfig) -> None:
    """Refuse, before any work, a logger that is not installed, and to log online to wandb where that will not do.

    Raises:
        InputError: the package of a logger is not there; or
            ``WANDB_MODE`` is misspelt; there is no key, for which wandb would ask, or none of the right form;
            or wandb does not know the key or does not answer within ten seconds (``WANDB_HTTP_TIMEOUT``), where it
            would try for minutes.
    """
    for node in (cfg.get("logger") or {}).values():
        for ending, package in PACKAGES.items():
            if node._target_.endswith(ending) and find_spec(package) is None:
                raise InputError(
                    f"logger={package} needs {package}, which is not installed: pip install 'ubmd[{package}]', or "
                    "choose logger=csv"
                )
    nodes = [node for node in (cfg.get("logger") or {}).values() if node._target_.endswith("WandbLogger")]
    mode = os.environ.get("WANDB_MODE")
    if nodes and mode and mode not in MODES:
        raise InputError(f"WANDB_MODE={mode} is none of {', '.join(MODES)}; set one of them, or choose logger=csv")
    if any(not node.get("offline") for node in nodes) and mode != "disabled":
        check_wandb_key()
        _check_reachable()


def _check_reachable() -> None:
    import wandb

    try:
        wandb.login(verify=True)
    except Exception as error:
        if not of_wandb(error):
            raise
        raise InputError(
            f"wandb online cannot be used ({first_line(error).rstrip('.')}); set WANDB_MODE=offline, and `wandb sync` "
            "the run folder later, or choose logger=csv"
        ) from error


def check_wandb_key() -> None:
    """Raises InputError if there is no key for wandb, or none of the right form."""
    import wandb
    from wandb.errors import Error
    from wandb.sdk.lib import wbauth

    remedy = "set WANDB_API_KEY, use `wandb login`, or leave WANDB_MODE at offline"
    if os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return
    try:
        key = os.environ.get("WANDB_API_KEY") or wbauth.read_netrc_auth(host=wandb.Settings().base_url)
        fault = wbauth.check_api_key(key) if key else "there is none"
    except (Error, ValueError) as error:
        fault = first_line(error)
    if fault:
        raise InputError(f"wandb online needs a key of its own ({fault}); {remedy}")


def open_loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    """The loggers of ``cfg.logger``; wandb and mlflow continue the run whose id is in the run folder.

    Raises:
        InputError: wandb or mlflow cannot be reached, refuses the run or cannot write its files. What fails later stops
            no run.
    """
    out: list[Logger] = []
    for config in (cfg.get("logger") or {}).values():
        if config._target_.endswith("WandbLogger"):
            if config.get("offline"):
                # wandb's remarks are about syncing, which an offline run does later
                os.environ.setdefault("WANDB_SILENT", "true")
            known = {"id": wandb_id(folder / "wandb_id.txt"), "resume": "allow"}
            # an agent of a sweep of wandb's says which run it is
            logger = instantiate(config, **({} if os.environ.get("WANDB_SWEEP_ID") else known))
            # Lightning hands on a setting that wandb has given up, and wandb would say so in every run
            logger._wandb_init.pop("anonymous", None)
            _start(logger)
            for values, abscissa in {"al": "al/round", BY_STRUCTURES: STRUCTURES}.items():
                logger.experiment.define_metric(abscissa)
                logger.experiment.define_metric(f"{values}/*", step_metric=abscissa)
            logger.experiment.config.update(hidden(plain(cfg)) | {"provenance": provenance()}, allow_val_change=True)
        elif config._target_.endswith("MLFlowLogger"):
            logger = _open_mlflow(cfg, config, folder / "mlflow_id.txt")
        else:
            logger = instantiate(config)
            if not isinstance(logger, CSVLogger):
                logger.log_hyperparams(flatten(hidden(plain(cfg))))
        out.append(logger)
    log_inputs(out, _inputs(cfg))
    return out


def _open_mlflow(cfg: DictConfig, config: DictConfig, file: Path) -> Logger:
    """MLflow's logger, which continues the run whose id is in a file."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # usually seven, which take minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    known = file.read_text(encoding="utf-8", errors="replace").strip() if file.exists() else ""
    remedy = "see to it, or choose logger=csv"
    try:
        # jobs side by side would both make the database, or the experiment
        with locked(Path(str(cfg.paths.root)) / "mlflow"):
            logger = instantiate(config, **({"run_id": known} if re.fullmatch(r"[0-9a-f]{32}", known) else {}))
            run = logger.run_id
        if run == known:
            logger.experiment.update_run(run, status="RUNNING")
        else:
            logger.log_hyperparams(flatten(hidden(plain(cfg))))
            write_text(file, run)
        return logger
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        if not isinstance(cause, Exception) or not SteadyMLFlowLogger.fails(cause):
            raise
        raise InputError(f"mlflow cannot start or continue its run ({first_line(cause)}); {remedy}") from error


def _inputs(cfg: DictConfig) -> dict[Path, str]:
    """The files that a run starts from, and what they are."""
    found: dict[Path, str] = {}
    for key, kind in INPUTS.items():
        value = OmegaConf.select(cfg, key)
        for path in value if isinstance(value, ListConfig) else [value]:
            if isinstance(path, str) and Path(path).is_file():
                found[Path(path)] = kind
    return found


def _start(logger: SteadyWandbLogger) -> None:
    """Has wandb begin its run."""
    try:
        _ = logger.experiment
    except Exception as error:
        if not of_wandb(error):
            raise
        raise InputError(
            f"wandb cannot start its run ({first_line(error)}); start the same command again with WANDB_MODE=offline, "
            "and `wandb sync` the run folder later, or with logger=csv"
        ) from error


def wandb_id(file: Path) -> str:
    """The id of the run in wandb that a file keeps; a new one if it is missing or damaged."""
    known = file.read_bytes().decode(errors="replace").strip() if file.exists() else None
    if known is not None and re.fullmatch(r"[\w-]{1,64}", known, re.ASCII):
        return known
    if known is not None:
        log.warning("%s is damaged; wandb goes on with a new run", file)
    new = secrets.token_hex(4)
    write_text(file, new)
    return new


def close_loggers(loggers: Sequence[Logger]) -> None:
    """Writes what is still to be written; wandb's run ends."""
    status = "success" if sys.exc_info()[0] is None else "failed"
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, SteadyMLFlowLogger):
            logger.close(status)
        if isinstance(logger, SteadyWandbLogger):
            import wandb

            with logger.tolerated():
                wandb.finish()
