"""One job of a command: in its folder, with a record of how it went, and what stops it said in a sentence."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ubmd import config, devices, interruption, paths, secrecy
from ubmd.cli import hydra_files, sweeps
from ubmd.cli.command import Command
from ubmd.errors import InputError, StoppedShort, system_refusal
from ubmd.runs.continuation import config_digest
from ubmd.runs.latest import point_back, point_to
from ubmd.runs.lock import LOCK, held

__all__ = ["JobFailed", "Reported", "check_device", "missing", "perform"]

log = logging.getLogger(__name__)

BEFORE_WORK = frozenset({".hydra", "ubmd.log", LOCK})
"""What is in a run's folder before a command begins its work."""


class JobFailed(Exception):  # noqa: N818
    """A job stopped with an error that has been reported; `code` is the exit code it asks for."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.code = code


class Reported(BaseException):
    """A single job has said what stopped it; not an Exception, to pass Hydra without its comments."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def missing(folder: Path) -> list[Path]:
    """A folder and those around it, as far as they do not exist yet."""
    return list(takewhile(lambda path: not os.path.lexists(path), (folder, *folder.parents)))


def _is_unused(made: Sequence[Path]) -> bool:
    """Whether a job has not begun its work in the folder that was made for it."""
    return bool(made) and {path.name for path in made[0].iterdir()} <= BEFORE_WORK


def _remove(made: Sequence[Path]) -> None:
    """Removes the folders that were made for a job, the innermost first."""
    shutil.rmtree(made[0])
    with suppress(OSError):  # somebody else has put something there
        for folder in made[1:]:
            folder.rmdir()


def perform(command: Command, attempt: str, made: Sequence[Path], cfg: DictConfig) -> Any:
    """One job: check, call the command's function, report what stops it.

    A sweep passes over what it finished at an earlier attempt, if the command allows for that.

    Args:
        command: whose function does the work.
        attempt: the start that this belongs to.
        made: folders that are made for this job, innermost first; bad input leaves none of them.
        cfg: the configuration.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    try:
        with held(folder):
            usual = folder.parent == Path(os.path.abspath(str(cfg.paths.root))) / str(cfg.name)
            before = point_to(folder) if usual else None
            try:
                return _perform(command, attempt, cfg, folder)
            except InputError:
                if _is_unused(made):
                    if usual:
                        point_back(folder, before)
                    _remove(made)
                raise
    except Exception as error:
        said = error if isinstance(error, InputError | StoppedShort) else system_refusal(error, folder)
        if said is None:
            log.exception("stopped by an error")
            raise JobFailed(repr(error), code=1) from error
        code, kind = (3, "stopped short") if isinstance(said, StoppedShort) else (2, "error")
        log.error("ubmd: %s: %s", kind, said)
        if hydra.mode == RunMode.RUN:
            raise Reported(code) from error
        raise JobFailed(str(said), code=code) from error


def _perform(command: Command, attempt: str, cfg: DictConfig, folder: Path) -> Any:
    """A job whose folder is held: the command's function, with a record of how it went."""
    paths.import_from_here()  # the process may be another one
    hydra, digest, before = HydraConfig.get(), "", {}
    try:
        plain = config.plain(cfg)
        secrecy.remember(plain)
        before = hydra_files.write_job(folder, cfg)
        digest = config_digest(plain)
        done = sweeps.finished_before(folder, digest)
        if done is not None and command.resumable and hydra.mode != RunMode.RUN:
            log.info("finished before: %s", folder.name)
            return done.result
        sweeps.write_record(folder, sweeps.JobRecord("running", attempt, digest))
        _limit_threads(hydra.launcher)
        config.validate(cfg, command.config_name)
        config.check_values(config.plain(cfg), command.config_name)
        check_device(cfg)
        module, name = command.function.split(":")
        function = getattr(importlib.import_module(module), name)
        with interruption.exposed():
            result = function(cfg)
    except Exception as error:
        if interruption.requested():  # a library made it of the signal
            interruption.stop()
        message = secrecy.hide(str(error) if isinstance(error, InputError | StoppedShort) else repr(error))
        if isinstance(error, InputError):
            with suppress(OSError, UnicodeDecodeError):
                hydra_files.put_back(folder, before)
        with suppress(OSError):  # what stopped the job may stop its record too
            sweeps.write_record(folder, sweeps.JobRecord("failed", attempt, digest, error=message))
        raise
    sweeps.write_record(folder, sweeps.JobRecord("finished", attempt, digest, result))
    return result


def _limit_threads(launcher: DictConfig) -> None:
    """A job beside others takes the cores that it was given, not all; torch, not imported yet, reads it from there.

    joblib sees to that itself.
    """
    alone = 1 if str(launcher.get("_target_")).endswith(".LocalLauncher") else None  # submitit's, on this machine
    if cores := launcher.get("cpus_per_task") or alone:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def check_device(cfg: DictConfig) -> None:
    """Raises InputError for a device that the trainer is to use and cannot."""
    if cfg.get("trainer") is not None:
        devices.check_device(cfg.trainer)
