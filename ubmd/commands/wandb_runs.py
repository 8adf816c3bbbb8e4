"""Runs as Weights & Biases keeps them, in the place of run folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ubmd.arguments import Parser
from ubmd.commands.folders import Found, add_run
from ubmd.errors import InputError
from ubmd.rounds.artifacts import RUN

__all__ = ["add_source", "check_source", "download_runs", "read_wandb", "wandb_api"]


def add_source(parser: Parser) -> None:
    """Adds the options ``--wandb`` and ``--group``."""
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="read the runs of a wandb project instead")
    parser.add_argument("--group", metavar="G", help="with --wandb: only the runs of this group")


def check_source(folders: Sequence[str], project: str | None, group: str | None) -> None:
    """Raises InputError unless runs are named by their folders or by a project, one of them."""
    if bool(folders) == bool(project):
        raise InputError("give run folders or --wandb ENTITY/PROJECT, one of them")
    if group and not project:
        raise InputError("--group goes with --wandb; give it with --wandb ENTITY/PROJECT")


def wandb_api() -> Any:
    """Access to what is on Weights & Biases.

    Raises:
        InputError: there is no key for it.
    """
    import wandb

    from ubmd.commands.loggers import check_wandb_key

    check_wandb_key()
    return wandb.Api()


def read_wandb(api: Any, project: str, group: str | None) -> Found:
    """Finished runs of ``ubmd learn`` in a project, from their histories.

    Args:
        api: a ``wandb.Api``.
        project: ``entity/project``.
        group: only runs of this group; None takes all.

    Raises:
        InputError: if the project cannot be read.
    """
    found = Found([], [])
    for run in _runs(api, project, group):
        rounds: dict[int, dict[str, Any]] = {}
        with _readable(project):
            for line in run.scan_history():
                if line.get("al/round") is not None:  # a continued run may have told of a round twice
                    rounds[int(line["al/round"])] = {
                        key.removeprefix("al/"): value for key, value in line.items() if key.startswith("al/")
                    }
        config = {key: value for key, value in run.config.items() if not key.startswith("_")}
        add_run(found, f"{run.name} ({run.id})", config, [rounds[index] for index in sorted(rounds)])
    return found


def download_runs(api: Any, project: str, group: str | None, target: Path) -> tuple[list[Path], list[str]]:
    """Run folders as far as figures are drawn from them, from the artifacts that runs have logged.

    Args:
        api: a ``wandb.Api``.
        project: ``entity/project``.
        group: only runs of this group; None takes all.
        target: where to make a folder for each run; what is there already is not loaded again.

    Returns:
        the folders, and the names of runs that have logged none.

    Raises:
        InputError: if the project cannot be read.
    """
    folders, without = [], []
    for run in _runs(api, project, group):
        with _readable(project):
            found = [artifact for artifact in run.logged_artifacts() if artifact.type == RUN]
            if not found:
                without.append(f"{run.name} ({run.id})")
                continue
            folder = target / re.sub(r"[^\w.+=,-]", "-", f"{run.name}-{run.id}")
            max(found, key=lambda artifact: int(artifact.version.removeprefix("v"))).download(root=str(folder))
        folders.append(folder)
    return folders, without


def _runs(api: Any, project: str, group: str | None) -> Iterator[Any]:
    with _readable(project):
        yield from api.runs(project, filters={"group": group} if group else {})


@contextmanager
def _readable(project: str) -> Iterator[None]:
    """Within it an error of wandb's is one of the project that was named."""
    import requests
    from wandb.errors import Error

    try:
        yield
    except (Error, ValueError, requests.RequestException) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--wandb {project} cannot be read ({' '.join(str(error).split())})") from error
