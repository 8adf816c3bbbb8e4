"""``ubmd export``: a potential as a file for programs without ubmd."""

from __future__ import annotations

from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from ubmd.commands.parts import take_potentials
from ubmd.config import plain
from ubmd.errors import InputError
from ubmd.uncertainty.checkpoint import load_potential

__all__ = ["export"]

UNITS = {
    "energy": "eV",
    "atomic energies": "eV",
    "forces": "eV/Å",
    "stress": "eV/Å³",
    "energy_uncertainty": "eV",
    "force_uncertainty": "eV/Å",
    "feature": "",
}


def export(cfg: DictConfig) -> None:
    """Writes the potential in ``cfg.potential`` as a metatomic model, and prints how far it is from ubmd's own.

    Raises:
        InputError: for anything wrong in the configuration or the potential, or if metatomic is not installed.
    """
    if cfg.get("logger"):
        raise InputError("logger: `ubmd export` logs to no logger; leave it out")
    if cfg.to != "metatomic":
        raise InputError(f"to={cfg.to} must be metatomic; trajectories are written by `ubmd convert`")
    try:
        from ubmd.interfaces.metatomic import export_metatomic
    except ImportError as error:
        raise InputError(f"to={cfg.to}: {error}") from error
    take_potentials(cfg)
    trained = load_potential(str(cfg.potential), allow=plain(cfg)["allow"])
    differences = export_metatomic(trained, cfg.file, dtype=str(cfg.dtype))
    console = Console()
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(f"{cfg.dtype}, exported against ubmd")
    table.add_column("largest difference", justify="right")
    for name, value in differences.items():
        table.add_row(name.replace("_", " "), f"{value:.1e} {UNITS[name]}")
    console.print(table)
    console.print(f"{cfg.file}", highlight=False, soft_wrap=True)
