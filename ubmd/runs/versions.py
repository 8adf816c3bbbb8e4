"""Configurations that earlier versions wrote, in the words of this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["upgraded"]

_MOVED = {
    "ubmd.data.system": "ubmd.systems.system",
    "ubmd.data.mil53": "ubmd.systems.mil53",
    "ubmd.training.files": "ubmd.data.files",
    "ubmd.dynamics.bias": "ubmd.bias.biased",
    "ubmd.dynamics.adaptive": "ubmd.bias.adaptive",
    "ubmd.dynamics.metadynamics": "ubmd.bias.metadynamics",
    "ubmd.dynamics.variables": "ubmd.observables.variables",
    "ubmd.dynamics.langevin": "ubmd.dynamics.integrators.langevin",
    "ubmd.dynamics.melchionna": "ubmd.dynamics.integrators.melchionna",
    "ubmd.dynamics.mtk": "ubmd.dynamics.integrators.mtk",
    "ubmd.dynamics.montecarlo": "ubmd.dynamics.integrators.montecarlo",
    "ubmd.reference.sampling": "ubmd.systems.sampling",
    "ubmd.reference.relaxation": "ubmd.systems.relaxation",
    "ubmd.calculator": "ubmd.interfaces.ase",
}
"""Modules of version 0.1's drafts, and where what was in them is now."""


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the names of classes and keys as they are now."""
    new = {key: _node(value) for key, value in config.items()}
    training = new.get("training")
    if isinstance(training, dict) and {"betas", "eps"} <= training.keys():
        adam = {key: training.pop(key) for key in ("betas", "eps")}
        new["optimizer"] = {"_target_": "torch.optim.Adam", "_partial_": True, **adam}
        new["scheduler"] = {"_target_": "ubmd.training.schedule.LinearDecay", "_partial_": True}
    return new


def _node(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _name(value) if key == "_target_" else _node(value) for key, value in node.items()}
    return [_node(value) for value in node] if isinstance(node, list) else node


def _name(target: Any) -> Any:
    module, _, name = str(target).rpartition(".")
    return f"{_MOVED[module]}.{name}" if module in _MOVED else target
