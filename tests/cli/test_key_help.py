from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ubmd.cli import app
from ubmd.cli import main as cli
from ubmd.cli.command import COMMANDS
from ubmd.cli.key_help import key_help

pytestmark = pytest.mark.usefixtures("quiet_logging")


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """Lines without indentation and without line breaks in texts."""
    assert cli.main(argv) == 0
    return capsys.readouterr().out.splitlines()


def test_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "learn", "bias.window", "--help") == [
        "bias.window=100",
        "  evaluations of the bias, window * every steps",
        "  takes   a whole number",
        "  set by  bias=uncertainty",
        "  option  of ubmd.bias.biased.BiasedPotential: N of Eq. 8, in evaluations; of window * every steps,",
        "          then.",
    ]


def test_keys_as_the_overrides_leave_them(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(
        capsys, "learn", "--help", "'threads'", "experiment=bulk_demo", "bias.tau_stress=0.1", "bias.tau_stress."
    )
    assert lines[:3] == [
        "threads=1",
        "  CPU threads; auto leaves it to torch (OMP_NUM_THREADS)",
        "  tensors this small gain nothing from a second one",
    ]
    assert "  set by  experiment=bulk_demo" in lines
    assert lines[lines.index("") + 1] == "bias.tau_stress=0.1"
    assert "  set by  this command line" in lines


def test_keys_that_are_not_there_yet(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "learn", "--help", "optimizer.weight_decay")[0] == (
        "optimizer.weight_decay is not set here (0 unless it is given); give it as +optimizer.weight_decay=VALUE"
    )
    assert told(capsys, "md", "--help", "potential")[0] == "potential must be given, potential=VALUE"


def test_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "learn", "--help", "uncertainty=distance", "uncertainty")
    assert lines[0] == "uncertainty=OPTION, one of (* is chosen):"
    assert any(line.startswith("  distance*  Distance to the nearest training features (Eq. 3)") for line in lines)
    assert "  with uncertainty/features=last_layer, sketched" in lines
    assert "uncertainty is made by ubmd.uncertainty.DistanceUncertainty" in lines
    assert told(capsys, "learn", "--help", "uncertainty.features") == told(
        capsys, "learn", "--help", "uncertainty/features"
    )


REFUSED = {
    "learn --help bias.tua": "bias.tua is not an option of BiasedPotential; did you mean bias.tau?",
    "learn --help tau": "tau is not a key of `ubmd learn`; did you mean bias.tau?",
    "learn --help dynamcis": "dynamcis is not a key of `ubmd learn`; did you mean dynamics?",
    "learn --help learning.max_round": "learning.max_round is not a key of learning; did you mean learning.max_rounds?",
    "learn --help seed.x": "seed is a single value, so there is no seed.x",
    "learn --help debug": "there are no options for debug yet",
    "learn --help bias=foo": "bias=foo is not one of the options of bias;",
    "learn --help bias=foo bias.tau": "bias=foo is not one of the options of bias;",
    "train --help data/test.x": "data.test is a single value, so there is no data.test.x",
}


@pytest.mark.parametrize("line", list(REFUSED))
def test_what_is_no_key(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"ubmd: error: {REFUSED[line]}")


def test_secrets_are_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "learn", "--help", "+paths.password=open", "paths.password")[0] == ("paths.password=***")


def test_groups_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bias" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("# My bias. More.\ndefaults: [uncertainty, _self_]\ntau: 0.75 # strong\n")
    lines = told(capsys, "learn", "--config-dir", str(tmp_path), "--help", "bias=mine", "bias", "bias.tau")
    assert any(line.split() == ["mine*", "My", "bias."] for line in lines)
    assert lines[-5:-2] == ["  strong", "  takes   a number", "  set by  bias=mine"]


def _keys(node: dict[str, Any], above: str = "") -> list[str]:
    out = []
    for key, value in node.items():
        if key != "hydra" and not key.startswith("_"):
            out += [f"{above}{key}", *(_keys(value, f"{above}{key}.") if isinstance(value, dict) else [])]
    return out


@pytest.mark.parametrize("name", ["learn", "evaluate", "export"])
def test_every_key_is_explained_by_a_comment_or_a_docstring(name: str) -> None:
    command = COMMANDS[name]
    with app.open_hydra() as hydra:
        tree: Any = app.OmegaConf.to_container(app.compose_unchecked(hydra, command, []))
        keys = _keys(tree)
        texts = dict(zip(keys, key_help(hydra, command, [], keys), strict=True))
    bare = [key for key, text in texts.items() if not re.search(r"^  (?!takes |set by |option  of \S+$)\S", text, re.M)]
    assert bare == []
    assert len(texts) >= 12
