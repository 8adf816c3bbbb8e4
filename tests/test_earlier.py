"""What scripts and command lines of earlier versions say is still understood."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from ubmd.cli.app import compose
from ubmd.earlier import CHOICES, MODULES, translated


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_that_have_moved(name: str) -> None:
    sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=MODULES[name]):
        found = importlib.import_module(name)
    new = importlib.import_module(MODULES[name])
    assert found is new
    assert new.__spec__ is not None
    assert new.__spec__.name == new.__name__ == MODULES[name]


def test_a_script_of_an_earlier_version() -> None:
    script = "from ubmd.calculator import UBMDCalculator as A\nfrom ubmd import UBMDCalculator as B\nassert A is B"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "ubmd.calculator is ubmd.interfaces.ase now" in done.stderr


@pytest.mark.parametrize("text", sorted(CHOICES))
def test_choices_of_an_earlier_version(text: str, caplog: pytest.LogCaptureFixture) -> None:
    other = ["experiment=ala2", "selection=random"]
    old = compose("learn", [*other, text], folder="run")
    assert f"{text} is of an earlier version, it is {' '.join(CHOICES[text])} now" in caplog.text
    assert old == compose("learn", [*other, *CHOICES[text]], folder="run")


def test_other_words_stay_as_they_are() -> None:
    words = ["seed=1", "model=gmnn", "name=model=gmnn_small"]
    assert translated(words) == words
    assert translated(["model=gmnn_small", "uncertainty=posterior_small"]) == [
        "model=gmnn",
        "size=small",
        "uncertainty=posterior",
    ]
