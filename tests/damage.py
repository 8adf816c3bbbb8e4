"""Ways in which a file of a run's folder may be damaged, and a run small enough to try them all."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ase import Atoms
from ase.io import write
from omegaconf import DictConfig

from ubmd.cli import app
from ubmd.runs.metrics import read_metrics

Damage = Callable[[Path], None]

TINY = (
    "reference.calculator._target_=ase.calculators.emt.EMT",
    *("logger=csv", "~logger.csv", "threads=1", "data.batch_size=4", "labelling.max_force=50", "bias.window=10"),
    *("system.n_initial=4", "learning.batch_size=3", "learning.max_structures=100", "learning.max_rounds=3"),
    *("size=small", "model.n_basis=2", "model.n_gauss=4", "model.hidden=[8]", "learning.checkpoint_epochs=4"),
    "uncertainty.features.n_projections=8",
    *("trainer.max_epochs=-1", "trainer.max_steps=30", "trainer.check_val_every_n_epoch=3"),
    *("dynamics.n_walkers=2", "dynamics.frame_interval=5", "dynamics.checkpoint_interval=10"),
    *("dynamics.stopping.max_steps=40", "dynamics.stopping.uncertainty_threshold=1000", "dynamics.integrator.dt=0.5"),
)
"""Three rounds of four copper atoms, in seconds."""


def tiny_run(folder: Path, *overrides: str) -> DictConfig:
    """The configuration of a tiny run in a folder."""
    structure = folder.parent / "cu4.xyz"
    if not structure.exists():
        structure.parent.mkdir(parents=True, exist_ok=True)
        write(structure, Atoms("Cu4", [[0, 0, 0], [2.4, 0, 0], [1.2, 2.1, 0], [1.2, 0.7, 2.0]]), format="extxyz")
    return app.compose("learn", [f"system.structure={structure}", *TINY, *overrides], folder=folder)


def results(folder: Path) -> dict[str, object]:
    """What a run has come to: numbers without times, and structures."""
    rows = [{k: v for k, v in row.items() if not k.startswith("time_")} for row in read_metrics(folder / "metrics.csv")]
    files = [folder / "dataset.extxyz", *sorted(folder.glob("rounds/*/*.extxyz"))]
    return {"metrics": rows} | {str(file.relative_to(folder)): file.read_bytes() for file in files}


def truncate(path: Path) -> None:
    """Half of it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    """Nothing left."""
    path.write_bytes(b"")


def flip(path: Path, place: float = 0.6) -> None:
    """One bit of one byte."""
    content = bytearray(path.read_bytes())
    if content:
        content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def no_text(path: Path) -> None:
    """Bytes that are no UTF-8."""
    path.write_bytes(b"\xff\xfe" + path.read_bytes())


def change_digit(path: Path) -> None:
    """The last digit of a number."""
    text = path.read_text(encoding="utf-8")
    numbers = list(re.finditer(r"\d+\.\d+", text)) or list(re.finditer(r"\d+", text))
    if not numbers:
        return
    end = numbers[len(numbers) // 2].end()
    digit = str((int(text[end - 1]) + 1) % 10)
    path.write_text(text[: end - 1] + digit + text[end:], encoding="utf-8")


def drop_frame(path: Path) -> None:
    """The last structure of an extended XYZ file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    starts = [i for i, line in enumerate(lines) if re.fullmatch(r"\s*\d+\s*", line)]
    path.write_text("".join(lines[: starts[-1]]), encoding="utf-8")


def delete(path: Path) -> None:
    """Gone."""
    path.unlink()


DAMAGES: dict[str, Damage] = {f.__name__: f for f in (truncate, empty, flip, no_text, change_digit, drop_frame, delete)}


def damages_of(path: Path) -> dict[str, Damage]:
    """Those that make sense for a file."""
    binary = path.suffix in (".ckpt", ".pt", ".h5", ".db", ".png")
    left_out = {"no_text", "change_digit"} if binary else set()
    left_out |= set() if path.suffix == ".extxyz" and path.stat().st_size else {"drop_frame"}
    return {name: damage for name, damage in DAMAGES.items() if name not in left_out}
