"""``ubmd convert``: walkers' trajectories as files that other programs read."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich import box
from rich.table import Table

from ubmd.dynamics.trajectory import opened_trajectories
from ubmd.errors import InputError
from ubmd.interfaces.convert import FORMATS, convert_trajectory
from ubmd.progress import run_progress
from ubmd.runs.continuation import read_config
from ubmd.runs.versions import upgraded

__all__ = ["convert", "time_steps_of"]

log = logging.getLogger(__name__)


def convert(cfg: DictConfig) -> None:
    """Writes the frames of ``cfg.trajectory``, those of each walker into a file of its own, and says which.

    Raises:
        InputError: for anything wrong in the configuration or the trajectory.
    """
    if cfg.get("logger"):
        raise InputError("logger: `ubmd convert` logs to no logger; leave it out")
    if cfg.to not in FORMATS:
        raise InputError(f"to={cfg.to} must be one of {', '.join(FORMATS)}")
    target = Path(cfg.file)
    if target.suffix != f".{cfg.to}":
        raise InputError(f"file={cfg.file} must end in .{cfg.to}, as to={cfg.to}; change either")
    walker = None if cfg.walker == "all" else int(cfg.walker)
    source = _source(Path(cfg.trajectory))
    with opened_trajectories(source) as parts:
        known = "time" in next(iter(parts.values())).recorded
        time_steps = {} if known else time_steps_of(source, parts)
    with run_progress() as progress, progress.stage("frames") as stage:
        written = convert_trajectory(
            source,
            target,
            cfg.to,
            walker=walker,
            system=cfg.system_name,
            time_steps=time_steps,
            standard_axes=cfg.to == "h5md" and cfg.axes == "standard",
            on_frames=stage.update,
        )
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("file", overflow="fold")
        for name in ("walker", "frames"):
            table.add_column(name, justify="right")
        for file in written:
            table.add_row(f"{file.path}", f"{file.system} {file.walker}".strip(), f"{file.n_frames}")
        progress.console.print(table)


def _source(path: Path) -> Path:
    """The trajectory itself, or that of a run of ``ubmd md``."""
    if not path.is_dir():
        return path
    rounds = sorted(path.glob("rounds/*/trajectory.h5"))
    if rounds and not (path / "trajectory.h5").is_file():
        raise InputError(f"trajectory={path} has one in each of {len(rounds)} rounds; give e.g. {rounds[-1]}")
    return path / "trajectory.h5"


def time_steps_of(trajectory: Path, systems: Iterable[str]) -> dict[str, float]:
    """Time steps, fs, of the systems in a trajectory that holds no time, from the configuration of its run.

    Those of which it is not known are left out, which a line says; so are steps that are not steps in time.
    """
    folders = (trajectory.parent, *trajectory.absolute().parents[2:3])  # of `ubmd md`, of a round of `ubmd learn`
    file = next((folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()), None)
    config = {} if file is None else upgraded(read_config(file))
    found: dict[str, float] = {}
    for name in systems:
        own = _inside(config, "system", "dynamics", name) if name else None
        step = _inside(own or config.get("dynamics"), "integrator", "dt")
        if isinstance(step, int | float) and step > 0:
            found[name] = float(step)
    if found:
        log.info("time steps of %s are those of %s", trajectory, file)
    else:
        log.warning(
            "%s holds no time, and no configuration beside it tells a time step: times are left out", trajectory
        )
    return found


def _inside(node: Any, *keys: str) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node
