"""Uncertainty-biased molecular dynamics and active learning of interatomic potentials.

The front door: what a script or a notebook needs is a name of this package. A run from Python::

    import ubmd

    cfg = ubmd.compose("learn", ["experiment=ala2_demo", "seed=1"], folder="runs/my_run")
    ubmd.learn(cfg)

- the commands of the command line: :func:`compose` makes and checks a configuration, :func:`learn`, :func:`train`,
  :func:`evaluate`, :func:`label` and :func:`run_md` take it;
- potentials: :func:`load_potential` reads what a command wrote; :class:`Potential` and :class:`BiasedPotential` give
  energies, forces and stress of a batch, :class:`UBMDCalculator` those of ASE's ``Atoms``;
- dynamics: :func:`run_walkers` runs a batch of walkers, :func:`read_trajectory` reads what walkers left;
- structures: :func:`read` and :func:`write`, which lose no label, charge or mass;
- :class:`InputError`, what all of them raise for bad input, with one sentence.

A name is imported when it is first asked for, so that ``ubmd --help`` need not wait for PyTorch. No module of the
package imports from here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ubmd.earlier import find_moved_modules
from ubmd.version import __version__

if TYPE_CHECKING:
    from ubmd.bias.biased import BiasedPotential
    from ubmd.cli.app import compose
    from ubmd.commands.evaluate import evaluate
    from ubmd.commands.label import label
    from ubmd.commands.learn import learn
    from ubmd.commands.md import run_md
    from ubmd.commands.train import train
    from ubmd.data.io import read_structures as read
    from ubmd.data.io import write_structures as write
    from ubmd.dynamics.trajectory import read_trajectory
    from ubmd.dynamics.walkers import run_walkers
    from ubmd.errors import InputError
    from ubmd.interfaces.ase import UBMDCalculator
    from ubmd.models.potential import Potential
    from ubmd.uncertainty.checkpoint import load_potential

__all__ = [
    "BiasedPotential",
    "InputError",
    "Potential",
    "UBMDCalculator",
    "__version__",
    "compose",
    "evaluate",
    "label",
    "learn",
    "load_potential",
    "read",
    "read_trajectory",
    "run_md",
    "run_walkers",
    "train",
    "write",
]

_PLACES = {
    "BiasedPotential": "ubmd.bias.biased:BiasedPotential",
    "InputError": "ubmd.errors:InputError",
    "Potential": "ubmd.models.potential:Potential",
    "UBMDCalculator": "ubmd.interfaces.ase:UBMDCalculator",
    "compose": "ubmd.cli.app:compose",
    "evaluate": "ubmd.commands.evaluate:evaluate",
    "label": "ubmd.commands.label:label",
    "learn": "ubmd.commands.learn:learn",
    "load_potential": "ubmd.uncertainty.checkpoint:load_potential",
    "read": "ubmd.data.io:read_structures",
    "read_trajectory": "ubmd.dynamics.trajectory:read_trajectory",
    "run_md": "ubmd.commands.md:run_md",
    "run_walkers": "ubmd.dynamics.walkers:run_walkers",
    "train": "ubmd.commands.train:train",
    "write": "ubmd.data.io:write_structures",
}
"""Where each name is defined, ``module:name``; the imports above say the same to type checkers."""

find_moved_modules()


def __getattr__(name: str) -> Any:
    """Imports a name of :data:`__all__` when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name].split(":")
    found = globals()[name] = getattr(importlib.import_module(module), attribute)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
