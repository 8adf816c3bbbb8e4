"""Configurations in run folders: read without executing anything, compared in what has a say in the result."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ubmd.errors import InputError
from ubmd.runs.continuation import MAY_DIFFER, MAY_GROW, config_digest, differences, read_config

CONFIG: dict[str, Any] = {"seed": 1, "bias": {"tau": 0.5, "weights": [1, 2.0]}, "learning": {"max_rounds": 2}}


def test_what_differs() -> None:
    now = {"seed": 2, "bias": {"tau": 0.5, "weights": [1.0, 2]}, "learning": {"max_rounds": 3}, "paths": {"run": "x"}}
    assert differences(CONFIG, now) == {"seed": (1, 2), "learning.max_rounds": (2, 3)}


@pytest.mark.parametrize("key", [*MAY_DIFFER, *MAY_GROW])
def test_parts_without_a_say(key: str) -> None:
    told: dict[str, Any] = {}
    node = told
    for part in key.split(".")[:-1]:
        node = node.setdefault(part, {})
    node[key.split(".")[-1]] = {"a": 1} if key in MAY_DIFFER else 7
    assert (key in differences({}, told)) == (key in MAY_GROW)
    assert config_digest(told, leave_out=(*MAY_DIFFER, *MAY_GROW)) == config_digest({})


def test_the_documentation_lists_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "restart.md").read_text()
    told = set(re.findall(r"`([\w.]+)`", page.split("## What may change", 1)[1].split("\n## ")[0]))
    short = {key for key in (*MAY_DIFFER, *MAY_GROW) if not key.startswith("data.test.sample.")} - {
        "reference._recursive_"  # no option of anybody
    }
    assert short <= told, short - told


def test_digest() -> None:
    assert config_digest(CONFIG) == config_digest(CONFIG | {"seed": 1.0})
    assert config_digest(CONFIG) != config_digest(CONFIG | {"seed": 2})
    assert config_digest(CONFIG) != config_digest(CONFIG | {"seed": True})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "a: [1",
        "a: &x [*x]",
        "a: &x {b: *x}",
        "a: 2026-13-45",
        "a: !!int ''",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: !!python/object/apply:os.system [true]",
        "a: !!python/name:os.system",
        "? [a]\n: 1",
        "a: " + "[" * 5000,
        "a: " + "9" * 5000,
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{n}: &{n} [{', '.join(['*' + p] * 9)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)),
        "\x00",
    ],
)
def test_damaged_configurations_are_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_config(tmp_path / "config.yaml")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "config.yaml") in str(caught.value)


def test_large_and_missing_files(tmp_path: Path) -> None:
    with (tmp_path / "config.yaml").open("wb") as file:
        file.truncate(2**30)
    for name, word in (("config.yaml", "too large"), ("other.yaml", "cannot be read"), (".", "cannot be read")):
        with pytest.raises(InputError, match=word):
            read_config(tmp_path / name)


def test_random_bytes(tmp_path: Path) -> None:
    rng, file = random.Random(0), tmp_path / "config.yaml"
    whole = yaml.safe_dump(CONFIG).encode()
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        file.write_bytes(bytes(content[: rng.randrange(1, len(content) + 1)]))
        try:
            config = read_config(file)
        except InputError:
            continue
        differences(config, CONFIG)
        config_digest(config)
