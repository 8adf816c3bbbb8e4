"""What settings are called and how they are drawn: the same name, colour and line in every figure and table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ubmd.analysis import style

__all__ = ["Look", "experiment_name", "looks_of", "method_name", "plain_looks"]

_LINES = ("-", "--", ":", "-.")
_BLUE, _VERMILLION, _GREEN, _PINK, _SKY, _ORANGE = style.PALETTE
_KINDS = {
    "Metadynamics": "metadynamics",
    "AdversarialPotential": "adversarial attacks",
    "AdversarialExploration": "adversarial attacks",
    "PerturbationExploration": "random perturbation",
}
"""By the class of the bias or of the way to explore, where it is no biased dynamics."""


@dataclass(frozen=True)
class Look:
    """Of a setting's lines and points."""

    colour: str
    line: str = "-"


def experiment_name(config: Mapping[str, Any]) -> str:
    """A setting as the paper's tables call it: ``biased MD (300 K, τ = 0.25, w/o. H)``.

    Args:
        config: the resolved configuration of a run of active learning.
    """
    kind, conditions = _kind(config), []
    integrator = _node(config, "dynamics", "integrator")
    if "temperature" in integrator:
        conditions.append(f"{_numbers(integrator['temperature'])} K")
    if "pressure" in integrator:
        conditions.append(f"{_numbers(integrator['pressure'])} MPa")
    if kind.startswith("biased"):
        conditions += _strengths(_node(config, "bias"))
    return f"{kind} ({', '.join(conditions)})" if conditions else kind


def method_name(config: Mapping[str, Any]) -> str:
    """The uncertainty as the paper calls it: posterior, distance or ensemble; another one by its class."""
    name = _class(_node(config, "uncertainty"))
    known = {"FeatureUncertainty": "posterior", "DistanceUncertainty": "distance", "EnsembleUncertainty": "ensemble"}
    return known.get(name, name or "unknown")


def looks_of(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Look]:
    """The look of each setting by its name.

    Settings of the paper have a colour of their own, whatever stands beside them; of several that would share one, and
    of all others, each takes the next that is free.

    Args:
        settings: configurations by name, at least one.
    """
    own = {name: _own_colour(config) for name, config in settings.items()}
    out: dict[str, Look] = {}
    for name, colour in own.items():
        if colour is not None and colour not in {look.colour for look in out.values()}:
            out[name] = Look(colour)
    reserved = [look.colour for look in out.values()]
    free = [Look(c, line) for line in _LINES for c in style.PALETTE if line != "-" or c not in reserved]
    rest = [name for name in settings if name not in out]
    out |= {name: free[number % len(free)] for number, name in enumerate(rest)}
    return {name: out[name] for name in settings}


def plain_looks(names: Sequence[str]) -> dict[str, Look]:
    """Looks of settings of which nothing but their names is known, in the order of the palette."""
    return looks_of({name: {} for name in names})


def _own_colour(config: Mapping[str, Any]) -> str | None:
    """The colour that a setting of the paper always has; None for others."""
    if not config:
        return None
    kind, integrator = _kind(config), _node(config, "dynamics", "integrator")
    if kind == "biased MD":
        return _PINK if "w. H" in _strengths(_node(config, "bias")) else _VERMILLION
    if kind == "metadynamics":
        return _ORANGE
    if kind != "unbiased MD":
        return None
    if "pressure" in integrator:
        return _BLUE if integrator["pressure"] in (0, [0]) else _GREEN
    temperature = integrator.get("temperature")
    if not isinstance(temperature, int | float):
        return None
    return _BLUE if temperature < 450 else _SKY if temperature < 900 else _GREEN


def _kind(config: Mapping[str, Any]) -> str:
    bias = _node(config, "bias")
    for name in (_class(_node(config, "dynamics")), _class(bias)):
        if name in _KINDS:
            return _KINDS[name]
    motion = "Monte Carlo" if "MonteCarlo" in _class(_node(config, "dynamics")) else "MD"
    biased = any(bias.get(name) for name in ("tau", "tau_stress"))
    return f"{'biased' if biased else 'unbiased'} {motion}"


def _strengths(bias: Mapping[str, Any]) -> list[str]:
    """``τ = 0.25`` and whether hydrogen is biased, where the configuration tells it apart from other elements."""
    out = []
    tau, stress = bias.get("tau"), bias.get("tau_stress")
    if tau:
        out.append(f"τ = {tau:g}")
    if stress:
        out.append(f"stress τ = {stress:g}" if tau else f"τ = {stress:g}")
    weights = bias.get("species_weights")
    if tau and isinstance(weights, Mapping) and "H" in weights:
        out.append({0: "w/o. H", 1: "w. H"}.get(weights["H"], f"H × {weights['H']:g}"))
    return out


def _numbers(value: Any) -> str:
    """A number, or several; of a pair that differs in its sign alone, ``±250``."""
    values = value if isinstance(value, list | tuple) else [value]
    if len(values) == 2 and values[0] == -values[1]:
        return f"±{abs(values[0]):g}"
    return ", ".join(f"{v:g}" for v in values).replace("-", "\N{MINUS SIGN}")


def _class(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_", "")).rsplit(".", 1)[-1]


def _node(config: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """A part of a configuration; empty where it is none."""
    found: Any = config
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}
