from __future__ import annotations

from pathlib import Path

import pytest

from ubmd.cli import main as cli
from ubmd.commands import report


def test_what_potentials_may_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[Path, list[str]]] = []

    def write(path: Path, allow: list[str]) -> Path:
        seen.append((path, allow))
        return path / "report.html"

    monkeypatch.setattr(report, "write_page", write)
    for words in (["a", "b"], ["allow=mine", "a"], ["a", "allow=[mine,'other.part']", "allow=third"]):
        assert cli.main(["report", *words]) == 0
    assert seen == [
        (Path("a"), []),
        (Path("b"), []),
        (Path("a"), ["mine"]),
        (Path("a"), ["mine", "other.part", "third"]),
    ]
    capsys.readouterr()
    for words, sentence in ((["allow=x"], "give a run folder"), (["a", "allow=[x"], "cannot read allow=[x")):
        assert cli.main(["report", *words]) == 2
        assert sentence in capsys.readouterr().err
