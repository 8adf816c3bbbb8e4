"""What every test shares: no wandb traffic, no runs in the working copy, logging as it was before."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# tensors of tests are too small for a second thread, which would only wait for the first; read when torch is loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell's background job ignores Ctrl-C, and hands that on to the programs that the tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _outside_world(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("UBMD_PROGRESS", "0")  # what stderr holds does not depend on the machine
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path_factory.getbasetemp() / "runs"))


@pytest.fixture(autouse=True)
def quiet_logging() -> Iterator[None]:
    """The root logger as it is in a new process, whatever Hydra's jobs make of it."""
    _plain_logging()
    yield
    _plain_logging()


def _plain_logging() -> None:
    root = logging.getLogger()
    for handler in root.handlers:
        if not type(handler).__module__.startswith("_pytest"):
            handler.close()
    root.handlers[:] = [handler for handler in root.handlers if type(handler).__module__.startswith("_pytest")]
    root.setLevel(logging.WARNING)


@pytest.fixture
def toy_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small configuration folder in place of ubmd's: the same outer groups, and toy classes inside."""
    from ubmd import paths

    real, conf = paths.config_dir(), tmp_path / "conf"
    for group in ("hydra", "paths"):
        (conf / group).mkdir(parents=True)
    for file in [*(real / "hydra").rglob("*.yaml"), *(real / "paths").rglob("*.yaml")]:
        copy = conf / file.relative_to(real)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    files = {
        "learn.yaml": """\
            defaults: [_self_, {paths: default}, {bias: walls}, {system: water}, {hydra: default},
                       {experiment: null}, {sweep: null}]
            name: learn
            seed: 0
            budget: {rounds: 3, structures: 512}
            """,
        "md.yaml": """\
            defaults: [_self_, {paths: default}, {system: "???"}, {hydra: default}]
            name: md
            file: ???
            """,
        "bias/walls.yaml": "_target_: fractions.Fraction\nnumerator: 1\ndenominator: 2\n",
        "bias/posterior.yaml": "_target_: textwrap.TextWrapper\n_partial_: true\nwidth: 70\n",
        "system/water.yaml": "_target_: types.SimpleNamespace\nsize: 3\n",
        "system/ice.yaml": "_target_: types.SimpleNamespace\nsize: 4\n",
        "experiment/demo.yaml": "# @package _global_\nname: demo\nseed: 7\n",
        "experiment/other.yaml": "# @package _global_\nname: other\n",
        "experiment/wrong.yaml": "# @package _global_\nname: wrong\nsed: 7\n",
        "experiment/wrong_inside.yaml": "# @package _global_\nname: wrong\nbudget: {round: 7}\n",
        "sweep/seeds.yaml": """\
            # @package _global_
            hydra: {mode: MULTIRUN, sweeper: {params: {seed: "1,2,3"}}}
            """,
    }
    for name, text in files.items():
        (conf / name).parent.mkdir(exist_ok=True)
        (conf / name).write_text("\n".join(line.removeprefix(" " * 12) for line in text.splitlines()) + "\n")
    monkeypatch.setattr(paths, "config_dir", lambda: conf)
    return conf
