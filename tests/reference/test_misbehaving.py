"""References that go wrong: one structure's trouble costs neither the others nor a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dask import config
from wandb.sdk.lib.exit_hooks import ExitHooks

from tests.reference.misbehaving import Bad, three
from ubmd.errors import InputError
from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.base import Label, Reference
from ubmd.reference.dask_executors import Dask
from ubmd.reference.executors import LabelExecutor, Processes
from ubmd.reference.labelling import label_structures
from ubmd.reference.store import LabelStore

SAYS = {
    "ragged": "rows of different lengths as forces",
    "text": "'not converged' as energy",
    "nothing": "None as forces",
    "nan": "non-finite energy",
    "empty": "PropertyNotImplementedError: forces not present",
    "mutate": "the calculator changed the structure that it was given",
    "sys_exit": "it ended the process (sys.exit): 0 (misbehaving.py:",
    "bug": "KeyError: 'x' (misbehaving.py:",
    "memory": "MemoryError",
    "setup": "Bad is not set up (CalculatorSetupError: set MYCODE_COMMAND",
    "segfault": "its worker",
    "os_exit": "its worker",
    "hang": "it took longer than executor.time_limit=20.0 s",
}
ENDS_THE_PROCESS = ("segfault", "os_exit", "hang")


def check(how: str, store: LabelStore, executor: LabelExecutor | None = None) -> None:
    """The others are labelled, the same call goes on later, and nothing is remembered against the structure."""
    bad = ASEReference(Bad(how), name="well")
    report = label_structures(three(), bad, store, executor=executor)
    assert [atoms.positions[0, 0] for atoms in report.labelled] == [0.0, 0.0]
    ((atoms, reason),) = report.failed
    assert atoms == three()[1]
    assert SAYS[how] in reason
    assert (len(store), label_structures(three(), bad, store, executor=executor).n_computed) == (2, 1)
    good = label_structures(three(), ASEReference(Bad("bug" if how != "bug" else "nan"), name="well"), store)
    assert good.n_computed == 1


@pytest.mark.parametrize("how", [how for how in SAYS if how not in ENDS_THE_PROCESS])
def test_in_this_process(how: str, tmp_path: Path) -> None:
    check(how, LabelStore(tmp_path / "labels.db"))


def test_whoever_watches_for_the_end_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = ExitHooks()
    monkeypatch.setattr(sys, "exit", sys.exit)  # both are put back
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    hooks.hook()
    check("sys_exit", LabelStore(tmp_path / "labels.db"))


@pytest.mark.slow
@pytest.mark.parametrize("make", [Processes, Dask])
def test_in_others(make: Callable[..., LabelExecutor], tmp_path: Path) -> None:
    with make(workers=1, time_limit=100.0, retries=0) as executor:
        for how in ("ragged", "sys_exit", "mutate", "segfault", "os_exit"):
            check(how, LabelStore(tmp_path / f"{how}.db"), executor)


@pytest.mark.slow
def test_a_worker_whose_start_takes_long(tmp_path: Path) -> None:
    # as on a machine that is busy: Dask alone gives such a worker up, and labels would be waited for without end
    with config.set({"distributed.deploy.lost-worker-timeout": "1ms"}), Dask(workers=1, retries=0) as executor:
        check("segfault", LabelStore(tmp_path / "labels.db"), executor)
    assert config.get("distributed.deploy.lost-worker-timeout") == "15s"


@pytest.mark.slow
def test_one_that_hangs(tmp_path: Path) -> None:
    # long enough for the start of a worker on a busy machine
    with Processes(workers=1, time_limit=20.0, retries=0) as executor:
        check("hang", LabelStore(tmp_path / "labels.db"), executor)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (None, "the reference returned NoneType instead of a label"),
        ((0.0, np.zeros((2, 3))), "the reference returned tuple instead of a label"),
        (Label(0.0, np.zeros((3, 3))), "forces of shape"),
        (Label(np.nan, np.zeros((2, 3))), "non-finite energy"),
    ],
)
def test_references_of_ones_own(result: object, reason: str, tmp_path: Path) -> None:
    class Own(Reference):
        def fingerprint(self):
            return {"class": "Own"}

        def compute(self, atoms):
            return result if atoms.positions[0, 0] else Label(1.0, np.zeros((2, 3)))

    report = label_structures(three(), Own(), LabelStore(tmp_path / "labels.db"))
    assert len(report.labelled) == 2
    assert reason in report.failed[0][1]


def test_a_reference_of_ones_own_that_changes_its_structure(tmp_path: Path) -> None:
    class Own(Reference):
        def fingerprint(self):
            return {"class": "Own"}

        def compute(self, atoms):
            label = Label(1.0, -atoms.positions)
            atoms.positions *= 1.0 + bool(atoms.positions[0, 0])
            return label

    structures = three()
    report = label_structures(structures, Own(), LabelStore(tmp_path / "labels.db"))
    assert structures == three()
    assert "changed the structure" in report.failed[0][1]


def test_what_is_not_set_up_is_not_tried_with_every_structure(tmp_path: Path) -> None:
    calls, store = [], LabelStore(tmp_path / "labels.db")

    class Counting(Bad):
        def do_setup(self, atoms):
            calls.append(atoms)
            super().do_setup(atoms)

    many = [three()[1] for _ in range(20)]
    for number, atoms in enumerate(many):
        atoms.positions[1, 1] += number
    with pytest.raises(InputError, match=r"Counting is not set up .*set MYCODE_COMMAND.*then start the same command"):
        label_structures(many, ASEReference(Counting("setup")), store)
    assert (len(calls), len(store)) == (3, 0)
    # where others are labelled, it is their own trouble
    report = label_structures([three()[0], *many], ASEReference(Counting("setup")), store)
    assert (len(report.labelled), len(report.failed), len(calls)) == (1, 20, 23)
