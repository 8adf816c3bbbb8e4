"""Names and colours of settings: the paper's words, and one colour for one setting."""

from __future__ import annotations

from typing import Any

import pytest

from ubmd.analysis import style
from ubmd.analysis.looks import experiment_name, looks_of, plain_looks


def config(tau: float = 0.25, stress: float = 0.0, hydrogen: float | None = 0.0, **integrator: Any) -> dict[str, Any]:
    weights = {} if hydrogen is None else {"H": hydrogen}
    bias = {
        "_target_": "ubmd.bias.biased.BiasedPotential",
        "tau": tau,
        "tau_stress": stress,
        "species_weights": weights,
    }
    return {
        "bias": bias,
        "dynamics": {"_target_": "x.WalkerExploration", "integrator": {"temperature": 300.0} | integrator},
    }


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (config(), "biased MD (300 K, τ = 0.25, w/o. H)"),
        (config(hydrogen=1), "biased MD (300 K, τ = 0.25, w. H)"),
        (config(hydrogen=None), "biased MD (300 K, τ = 0.25)"),
        (config(0.0, temperature=1200), "unbiased MD (1200 K)"),
        (config(0.0, 0.5, pressure=0.0, temperature=600), "biased MD (600 K, 0 MPa, τ = 0.5)"),
        (config(0.0, pressure=[250.0, -250.0]), "unbiased MD (300 K, ±250 MPa)"),
        (config(0.0, pressure=-250.0), "unbiased MD (300 K, \N{MINUS SIGN}250 MPa)"),
        ({"bias": {"_target_": "ubmd.bias.metadynamics.Metadynamics"}}, "metadynamics"),
        ({"bias": {"tau": 0.0}, "dynamics": {"_target_": "x.PerturbationExploration"}}, "random perturbation"),
        ({}, "unbiased MD"),
    ],
)
def test_settings_are_called_as_in_the_paper(given: dict[str, Any], name: str) -> None:
    assert experiment_name(given) == name


def test_a_setting_has_its_colour_whatever_stands_beside_it() -> None:
    paper = {experiment_name(c): c for c in (config(), config(hydrogen=1), config(0.0), config(0.0, temperature=1200))}
    together = looks_of(paper)
    assert len({look.colour for look in together.values()}) == 4
    for name, given in paper.items():
        assert looks_of({name: given}) == {name: together[name]}
    several = looks_of({f"{tau}": config(tau) for tau in (0.1, 0.25, 0.5)} | {"other": {}})
    assert len(set(several.values())) == 4
    assert several["0.1"].colour == together["biased MD (300 K, τ = 0.25, w/o. H)"].colour


def test_many_settings_all_look_different() -> None:
    looks = plain_looks([str(number) for number in range(12)])
    assert [look.colour for look in looks.values()][:6] == list(style.PALETTE)
    assert len(set(looks.values())) == 12
