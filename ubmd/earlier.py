"""Names of earlier versions: modules that have moved, and choices on the command line that are made in parts now."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import logging
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["CHOICES", "MODULES", "find_moved_modules", "translated"]

log = logging.getLogger(__name__)

MODULES = {
    "ubmd.app": "ubmd.cli.app",
    "ubmd.calculator": "ubmd.interfaces.ase",
    "ubmd.data.mil53": "ubmd.systems.mil53",
    "ubmd.data.system": "ubmd.systems.system",
    "ubmd.dynamics.adaptive": "ubmd.bias.adaptive",
    "ubmd.dynamics.bias": "ubmd.bias.biased",
    "ubmd.dynamics.langevin": "ubmd.dynamics.integrators.langevin",
    "ubmd.dynamics.melchionna": "ubmd.dynamics.integrators.melchionna",
    "ubmd.dynamics.metadynamics": "ubmd.bias.metadynamics",
    "ubmd.dynamics.montecarlo": "ubmd.dynamics.integrators.montecarlo",
    "ubmd.dynamics.mtk": "ubmd.dynamics.integrators.mtk",
    "ubmd.learning": "ubmd.commands.learn",
    "ubmd.models.checkpoint": "ubmd.uncertainty.checkpoint",
    "ubmd.reference.relaxation": "ubmd.systems.relaxation",
    "ubmd.reference.sampling": "ubmd.systems.sampling",
    "ubmd.training.files": "ubmd.data.files",
}
"""Modules that scripts and configurations name, and where what was in them is now."""

CHOICES = {
    "model=gmnn_small": ("model=gmnn", "size=small"),
    "model=gmnn_ensemble": ("model=ensemble",),
    "model=gmnn_ensemble_small": ("model=ensemble", "size=small"),
    "uncertainty=posterior_small": ("uncertainty=posterior", "size=small"),
    "uncertainty=distance_small": ("uncertainty=distance", "size=small"),
    "uncertainty=posterior_last_layer": ("uncertainty=posterior", "uncertainty/features=last_layer"),
    "uncertainty=distance_last_layer": ("uncertainty=distance", "uncertainty/features=last_layer"),
    "bias=metadynamics_torsions": ("bias=metadynamics",),
    **{f"method={kind}_gmnn": (f"method={kind}",) for kind in ("posterior", "distance", "ensemble")},
    **{f"method={kind}_gmnn_small": (f"method={kind}", "size=small") for kind in ("posterior", "distance", "ensemble")},
}
"""Overrides that say the same in the words of this version."""


def translated(overrides: Sequence[str]) -> list[str]:
    """Overrides in the words of this version; what was translated is told."""
    out: list[str] = []
    for text in overrides:
        new = CHOICES.get(text, (text,))
        if new != (text,):
            log.warning("%s is of an earlier version, it is %s now", text, " ".join(new))
        out += [word for word in new if word not in out]
    return out


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of :data:`MODULES` where they are now, after everybody else has been asked."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is {MODULES[spec.name]} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(MODULES[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Gives the module back the specification of its own, in whose place the import has put this one."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def find_moved_modules() -> None:
    """Has imports by an earlier name find the module."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
