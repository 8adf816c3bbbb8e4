"""SMILES on the command line: brackets and equality signs that Hydra would take for its own."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ubmd.arguments import quoted


@pytest.mark.parametrize(
    "smiles",
    [
        "CC(=O)NC",
        "[O][O]",
        "N",
        r"C/C=C\C",
        "C[C@@H](N)C(=O)O",
        "C#N",
        "[NH4+]",
        "C1=CC=CC=C1",
        "O=[N+]([O-])c1ccc(F)cc1",
    ],
)
def test_smiles_arrive_as_they_were_typed(smiles: str) -> None:
    (text,) = quoted([f"system.smiles={smiles}"])
    override = OverridesParser.create().parse_override(text)
    assert override.value() == smiles
    assert quoted([text]) == [text]


def test_a_sweep_over_smiles() -> None:
    (text,) = quoted(["system.smiles=CCO,CC(=O)NC"])
    override = OverridesParser.create().parse_override(text)
    assert [value.text for value in override.sweep_iterator()] == ["CCO", "CC(=O)NC"]  # pyright: ignore


def test_what_is_left_alone() -> None:
    texts = ["system.smiles=null", "system.smiles=", "system.smiles='CCO'", "system.structure=a.xyz", "seed=1,2", "-m"]
    assert quoted(texts) == texts
