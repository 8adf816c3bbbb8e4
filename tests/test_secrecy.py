"""Secrets: what is taken for one, and that none is left in what a run writes and says."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from ase.io import write

from ubmd import config, secrecy
from ubmd.cli import main as cli
from ubmd.runs.continuation import config_digest

SECRETS = ("s3cr3tXYZ", "pa55wordQ", "fromenv777", "urlpass99", "nested444", "wandbkey55")


class Paid(EMT):
    """A calculator behind a password, which it tells in its errors."""

    def __init__(
        self,
        api_key: str = "",
        password: str = "",
        url: str = "",
        licence: str = "",
        auth: dict[str, str] | None = None,
        fails: bool = False,
    ):
        super().__init__()
        self.given = (api_key, password, url, licence, (auth or {}).get("pass"))
        self.fails = fails

    def calculate(self, atoms: Atoms | None = None, properties: Any = ("energy",), changes: Any = all_changes) -> None:
        wanted = ("s3cr3tXYZ", "pa55wordQ", "https://me:urlpass99@host/x", "fromenv777", "nested444")
        if self.given != wanted or self.fails:
            raise RuntimeError(f"{self.given} is wrong, password={self.given[1]}")
        super().calculate(atoms, properties, changes)


@pytest.mark.parametrize(
    "key",
    [
        *(
            "key",
            "api_key",
            "apiKey",
            "reference.calculator.password",
            "auth",
            "auth.user",
            "auth_token",
            "token",
            "APIKEY",
        ),
        *(
            "secret",
            "client_secret",
            "credentials.name",
            "passwd",
            "WANDB_API_KEY",
            "AWS_SECRET_ACCESS_KEY",
            "GITHUB_TOKEN",
        ),
    ],
)
def test_is_secret(key: str) -> None:
    assert secrecy.is_secret(key)


@pytest.mark.parametrize(
    "key",
    [
        *("monitor_key", "energy_key", "author", "keyboard", "max_tokens", "n_tokens", "keys", "monitor", "tokenizer"),
        *("passes", "compass", "keyword", "secretary", "authority", "reference.calculator.energy_key", "seed", ""),
    ],
)
def test_is_no_secret(key: str) -> None:
    assert not secrecy.is_secret(key)


def test_no_configuration_of_ubmd_has_secrets() -> None:
    from ubmd.cli import app

    for command in ("learn", "label"):
        overrides = ["structures=a.xyz", "reference.calculator._target_=ase.calculators.emt.EMT"]
        plain = config.plain(app.compose(command, overrides if command == "label" else ["experiment=ala2_demo"]))
        assert secrecy.hidden(plain) == plain


def test_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "fromenv777")
    monkeypatch.setenv("OTHER_TOKEN", "/a/path")
    given = {
        "a": {"password": 12345678, "token": None, "secret": "${oc.env:X}", "n_tokens": 3},
        "auth": {"_target_": "a.B", "user": "me", "on": True},
        "list": ["ftp://me:p@ss@host/x", {"api_key": "s3cr3tXYZ"}, "uses s3cr3tXYZ and fromenv777", "/a/path"],
    }
    assert secrecy.hidden(given) == {
        "a": {"password": "***", "token": None, "secret": "${oc.env:X}", "n_tokens": 3},
        "auth": {"_target_": "a.B", "user": "***", "on": True},
        "list": ["ftp://***@host/x", {"api_key": "***"}, "uses *** and ***", "/a/path"],
    }
    assert secrecy.hidden(secrecy.hidden(given)) == secrecy.hidden(given)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed=1", "seed=1"),
        ("+a.password=x y, z", "+a.password=***"),
        ("~a.password", "~a.password"),
        ("a={_target_:b.C,api_key:abc}", "a={_target_:b.C,api_key:***}"),
        ("a='http://u:p@h/'", "a='http://***@h/'"),
        ("a.token=${oc.env:A}", "a.token=${oc.env:A}"),
        ("monitor_key=valid/loss", "monitor_key=valid/loss"),
    ],
)
def test_override(text: str, told: str) -> None:
    assert secrecy.hide_override(text) == told


def test_folder_names_and_checksums_say_nothing() -> None:
    assert config.run_name(["seed=1", "+a.password=x"]) == "seed-1"
    assert config.run_name(["b=http://u:one@h"]) == config.run_name(["b=http://u:two@h"])
    assert config_digest({"a": {"password": "one"}}) == config_digest({"a": {"password": "two"}})
    assert config_digest({"a": {"energy_key": "one"}}) != config_digest({"a": {"energy_key": "two"}})


def test_tracebacks_in_logs() -> None:
    secrecy.remember({"password": "pa55wordQ"})
    try:
        raise ValueError("no entry with pa55wordQ")
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "stopped %s", ("pa55wordQ",), (ValueError, error, None))
    assert secrecy.Formatter("%(message)s").format(record).count("***") == 2


@pytest.mark.usefixtures("quiet_logging")
@pytest.mark.parametrize("how", [[], ["-m"], ["+reference.calculator.fails=true"]])
def test_nothing_of_a_run_holds_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], how: list[str]
) -> None:
    runs = tmp_path / "runs"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UBMD_RUNS", str(runs))
    monkeypatch.setenv("MY_KEY", "fromenv777")
    monkeypatch.setenv("WANDB_API_KEY", "wandbkey55")
    write("cu.extxyz", bulk("Cu"))

    def command(key: str) -> list[str]:
        calculator = "reference.calculator"
        return [
            *("label", "structures=cu.extxyz", f"{calculator}._target_={__name__}.Paid", *how),
            *(f"+{calculator}.api_key={key}", f"+{calculator}.password=pa55wordQ"),
            f"+{calculator}.url='https://me:urlpass99@host/x'",
            *(f"+{calculator}.licence=${{oc.env:MY_KEY}}", f"+{calculator}.auth={{pass: nested444}}"),
        ]

    failing = any("fails" in text for text in how)
    assert cli.main(command("s3cr3tXYZ")) == (2 if failing else 0)
    said = capfd.readouterr()
    texts = [said.out.encode(), said.err.encode(), *(str(p).encode() for p in runs.rglob("*"))]
    texts += [path.read_bytes() for path in runs.rglob("*") if path.is_file()]
    assert len(texts) > 10
    assert not [secret for secret in SECRETS for text in texts if secret.encode() in text]
    (run,) = (path.parent for path in runs.rglob("config.yaml") if path.parent.name != ".hydra")
    assert yaml.safe_load((run / "config.yaml").read_text())["reference"]["calculator"]["password"] == "***"
    if not how:  # another key continues the run, whose label is there
        assert cli.main(command("another1key")) == 0
        assert "0 computed now" in capfd.readouterr().out


def test_modules_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calculator_of_mine.py").write_text("from ase.calculators.emt import EMT\n")
    (tmp_path / "numpy.py").write_text("raise AssertionError\n")
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    write("cu.extxyz", bulk("Cu"))
    assert cli.main(["label", "structures=cu.extxyz", "reference.calculator._target_=calculator_of_mine.EMT"]) == 0
    assert sys.path[-1] == str(tmp_path)
