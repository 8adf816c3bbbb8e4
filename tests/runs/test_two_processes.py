"""Two processes on one run folder: one runs, the other is told so, and no label is computed twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.damage import TINY, results, tiny_run
from ubmd.commands.learn import learn
from ubmd.errors import InputError
from ubmd.runs.metrics import read_metrics

CALCULATOR = """
import time
from pathlib import Path
from ase.calculators.emt import EMT

class Waiting(EMT):
    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        with open("labels", "a") as file:
            file.write(f"{self.results['energy']}\\n")
        while not Path("go").exists():
            time.sleep(0.05)
"""


@pytest.mark.slow
def test_two_commands_at_once(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(CALCULATOR)
    run = tmp_path / "run"
    waiting = ("reference.calculator._target_=waiting.Waiting", "learning.max_rounds=2")
    cfg = tiny_run(run, "learning.max_rounds=2")
    command = [sys.executable, "-m", "ubmd", "learn", f"system.structure={tmp_path / 'cu4.xyz'}", *TINY, *waiting]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    both = [
        subprocess.Popen([*command, f"hydra.run.dir={run}"], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        while all(process.poll() is None for process in both) or not (tmp_path / "labels").exists():
            time.sleep(0.05)
        refused, first = sorted(both, key=lambda process: process.poll() is None)
        with pytest.raises(InputError, match=f"is in use by process {first.pid} on "):  # from a notebook
            learn(cfg)
        (tmp_path / "go").touch()
        said = refused.communicate()[1]
        assert refused.returncode == 2
        assert f"{run} is in use by process {first.pid} on " in said
        assert "Traceback" not in said
        said = first.communicate(timeout=300)[1]
        assert first.returncode == 0, said
    finally:
        for process in both:
            process.kill()
    computed = (tmp_path / "labels").read_text().split()
    assert len(computed) == len(set(computed)) == read_metrics(run / "metrics.csv")[-1]["n_train"] + 1 == 7
    assert results(run)["metrics"]
