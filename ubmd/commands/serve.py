"""``ubmd serve``: forces of a potential for a server that moves the atoms, such as i-PI."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from ubmd.bias.biased import BiasedPotential
from ubmd.commands.parts import take_potentials
from ubmd.config import build, plain
from ubmd.data.io import read_structures
from ubmd.errors import InputError
from ubmd.interfaces.ase import UBMDCalculator, check_elements, torch_device
from ubmd.interfaces.ipi import connect
from ubmd.interfaces.ipi import serve as answer
from ubmd.progress import run_progress
from ubmd.uncertainty.checkpoint import load_potential

__all__ = ["serve"]

log = logging.getLogger(__name__)


def serve(cfg: DictConfig) -> None:
    """Answers the server at ``cfg.address`` until it ends; the structure in ``cfg.system`` tells it the elements.

    Raises:
        InputError: for anything wrong in the configuration, the potential or the structure, before anything is sent;
            if nobody listens, or the server has other atoms.
    """
    if cfg.get("logger"):
        raise InputError("logger: `ubmd serve` logs to no logger, its results go to the server; leave it out")
    take_potentials(cfg)
    device = torch_device(cfg.device)
    trained = load_potential(str(cfg.potential), device=device, allow=plain(cfg)["allow"])
    bias = build(cfg, "bias", potential=trained.potential, uncertainty=trained.uncertainty)
    if not isinstance(bias, BiasedPotential):
        raise InputError(
            f"bias: a {type(bias).__name__} is for walkers of ubmd alone; choose bias=none, uncertainty, adaptive, "
            "atomic or stress"
        )
    path = cfg.system.structure
    atoms = (read_structures(path, index="0") if isinstance(path, str) else [build(cfg, "system").atoms])[0]
    check_elements(atoms, trained.species, f"the structure {path}", cfg.potential)

    def calculator() -> UBMDCalculator:
        return UBMDCalculator(bias, device=device)

    calculator().get_potential_energy(atoms)  # what is wrong with them is found here, and not by the server
    with run_progress() as progress:
        connection = connect(str(cfg.address), float(cfg.wait))
        log.info("%s, %s, for %s", atoms.symbols.get_chemical_formula(), _kind(bias), cfg.address)
        with progress.stage("structures", None) as stage:
            steps = answer(
                connection,
                atoms,
                calculator,
                uncertainties=bool(cfg.uncertainties),
                on_step=lambda done: stage.update(done, None),
            )
    log.info("the server has ended after %d structures", steps)


def _kind(bias: BiasedPotential) -> str:
    return f"biased (tau={bias.tau:g}, tau_stress={bias.tau_stress:g})" if bias.biased else "unbiased"
