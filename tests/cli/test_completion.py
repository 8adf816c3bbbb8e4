from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ubmd.cli import main as cli
from ubmd.cli.completion import choices, shell_completion

ROOT = Path(__file__).parents[2]

AS_BASH = r"""
eval "$(ubmd -sc install=bash)"
complete -p ubmd
tab() {  # as bash splits a line into words, with = among the word breaks
    COMP_LINE=$1 COMP_POINT=${2:-${#1}}
    _ubmd ubmd
    printf '%s|' "${COMPREPLY[@]}"
    echo
}
tab 'ubmd lea'
tab 'ubmd learn bias=un'
tab 'ubmd learn bias=un seed=1' 18
tab 'ubmd md potential=my'
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
tab 'ubmd learn bias=un'
"""


def test_as_bash_calls_it(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "ubmd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ubmd "$@"\n')
    program.chmod(0o755)
    (tmp_path / "my potential.ckpt").touch()
    (tmp_path / "my_runs").mkdir()
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", AS_BASH],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    installed, *answers = done.stdout.splitlines()
    assert installed == "complete -o default -o nospace -F _ubmd ubmd"
    assert answers == [
        "learn |",
        "uncertainty |",
        "uncertainty |",
        r"my\ potential.ckpt |my_runs/|",
        "bias=uncertainty |",
    ]


def test_what_words_may_become(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choices("ubmd l") == ["learn", "label"]
    assert choices("ubmd learn --mu") == ["--multirun"]
    assert choices("ubmd train experiment=") == []  # all are of `ubmd learn`
    assert choices("ubmd md select") == []  # a group, but not of this command
    assert choices("ubmd learn dynamics=npt dynamics.integrator.pr") == ["dynamics.integrator.pressure="]
    assert choices("ubmd learn bias.tau=") == ["bias.tau=0.25"]
    assert not any("_partial_" in choice for choice in choices("ubmd learn bias."))
    assert choices("ubmd init c") == ["crystal"]
    assert choices("ubmd check runs/") == choices("ubmd nothing x") == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".hidden").touch()
    (tmp_path / "a.xyz").touch()
    assert choices("ubmd learn system.structure=") == ["system.structure=a.xyz"]
    assert choices(f"ubmd learn system.structure={tmp_path}/.h") == [f"system.structure={tmp_path}/.hidden"]
    group = tmp_path / "conf" / "bias"
    group.mkdir(parents=True)
    (group / "mine.yaml").write_text("defaults: [uncertainty]\n")
    assert choices("ubmd learn --config-dir conf bias=m") == [
        "bias=metadynamics",
        "bias=metadynamics_volume",
        "bias=mine",
    ]


def test_lines_that_are_wrong_complete_to_nothing() -> None:
    for line in ("ubmd learn bias=[[ x", "ubmd learn --wrong b", "ubmd learn --config-dir nowhere b"):
        assert shell_completion("query=bash", {"COMP_LINE": line}) == ""


def test_other_shells(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-sc", "install=csh"]) == 2
    assert "-sc install=csh is none of install=bash" in capsys.readouterr().err
    assert cli.main(["-sc", "uninstall=bash"]) == 0
    assert "complete -r ubmd" in capsys.readouterr().out
