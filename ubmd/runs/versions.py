"""Configurations that earlier versions wrote, in the words of this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ubmd.data.foreign import LabelKeys, LabelUnits
from ubmd.earlier import MODULES

__all__ = ["upgraded"]

_TORSION = "ubmd.observables.Torsion"
_VARIABLES = ("ubmd.dynamics.variables", "ubmd.observables.variables")
"""Modules of classes for several variables of one kind, where there is one class for one variable now."""
_AXES = "abc"
_GMNN = "ubmd.models.gmnn.GMNN"
_BIASES = ("biased.BiasedPotential", "adaptive.SpeciesBalancedBias", "metadynamics.Metadynamics")


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the names of classes and keys as they are now."""
    new = {key: _node(value) for key, value in config.items()}
    training, system, bias = new.get("training"), new.get("system"), new.get("bias")
    if isinstance(training, dict) and {"betas", "eps"} <= training.keys():
        adam = {key: training.pop(key) for key in ("betas", "eps")}
        new["optimizer"] = {"_target_": "torch.optim.Adam", "_partial_": True, **adam}
        new["scheduler"] = {"_target_": "ubmd.training.schedule.LinearDecay", "_partial_": True}
    if isinstance(system, dict):
        _followed_variables(system)
    if isinstance(dynamics := new.get("dynamics"), dict):
        dynamics.setdefault("groups", 1)
    if isinstance(calibration := new.get("calibration"), dict):
        calibration.setdefault("evidence", {"_target_": "ubmd.uncertainty.Split"})
    if isinstance(bias, dict) and isinstance(variables := bias.get("variables"), list):
        bias["variables"] = {name: node for part in variables for name, node in _single_variables(part).items()}
    if isinstance(bias, dict) and str(bias.get("_target_")).removeprefix("ubmd.bias.") in _BIASES:
        bias.setdefault("every", 1)
    _sampled_test_set(new.get("data"))
    _label_names(new)
    return new


def _label_names(config: dict[str, Any]) -> None:
    """Labels of files had ubmd's own names and units."""
    if not isinstance(data := config.get("data", {} if "structures" in config else None), dict):
        return
    for name, part in (("keys", LabelKeys()), ("units", LabelUnits())):
        data.setdefault(name, {"_target_": f"ubmd.data.foreign.{type(part).__name__}", **asdict(part)})
    config["data"] = data


def _sampled_test_set(data: Any) -> None:
    """Test sets from dynamics were of one trajectory."""
    test = data.get("test") if isinstance(data, dict) else None
    sample = test.get("sample") if isinstance(test, dict) else None
    if isinstance(sample, dict) and str(sample.get("_target_")).endswith(".sample_ff19sb"):
        sample.setdefault("trajectories", 1)


def _followed_variables(system: dict[str, Any]) -> None:
    """Torsions were variables of their own kind, and phases states by volume alone."""
    if (torsions := system.pop("torsions", None)) is not None:
        system["variables"] = {name: {"_target_": _TORSION, "atoms": atoms} for name, atoms in torsions.items()}
    if (phases := system.pop("phases", None)) is not None:
        system["states"] = {name: {"volume": bounds} for name, bounds in phases.items()}


def _single_variables(node: Mapping[str, Any]) -> dict[str, Any]:
    """The variables, by name, that a node of the kind for several of them made."""
    module, _, kind = str(node.get("_target_")).rpartition(".")
    if module not in _VARIABLES:
        return {kind.lower(): node}
    width = {"width": node["width"]} if "width" in node else {}
    if kind == "Torsions":
        if width == {"width": 0.35}:  # what it is without being said, as in conf/bias
            width = {}
        return {name: {"_target_": _TORSION, "atoms": atoms, **width} for name, atoms in node["atoms"].items()}
    if kind == "CellLengths":
        axes = node.get("axes", range(3))
        return {_AXES[i]: {"_target_": "ubmd.observables.CellLength", "axis": i, **width} for i in axes}
    return {kind.lower(): {"_target_": f"ubmd.observables.{kind}", **width}}


def _node(node: Any) -> Any:
    if isinstance(node, Mapping):
        new = {key: _name(value) if key == "_target_" else _node(value) for key, value in node.items()}
        if new.get("_target_") == _GMNN:
            new.setdefault("repulsion_cutoff", 0.7)  # of a repulsion that there was not
        return new
    return [_node(value) for value in node] if isinstance(node, list) else node


def _name(target: Any) -> Any:
    module, _, name = str(target).rpartition(".")
    return f"{MODULES[module]}.{name}" if module in MODULES else target
