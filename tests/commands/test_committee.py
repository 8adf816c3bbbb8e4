"""``ubmd committee`` of potentials of copper and gold, labelled by an analytic potential."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.test_module import alloys
from ubmd.cli import main as cli
from ubmd.commands.committee import joined
from ubmd.data.batch import collate
from ubmd.data.io import write_structures
from ubmd.errors import InputError
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.models.gmnn import GMNN
from ubmd.training.start import load_weights
from ubmd.uncertainty import FeatureUncertainty, LastLayer
from ubmd.uncertainty.checkpoint import load_potential, save_potential

pytestmark = pytest.mark.usefixtures("quiet_logging")

STRUCTURES = alloys(12)


def write_potential(
    path: str, seed: int, hidden: Sequence[int], species: Sequence[str] = ("Cu", "Au"), dtype: Any = torch.float32
) -> None:
    """With energies of atoms that are ``seed`` eV off."""
    options: dict[str, Any] = {"cutoff": 4.0, "n_basis": 2, "n_gauss": 4, "hidden": list(hidden)}
    model = GMNN(species, **options, seed=seed).to(dtype)
    batch = collate(STRUCTURES, 4.0, dtype=dtype)
    assert batch.energy is not None
    model.fit_scale_shift(batch.energy + seed * batch.n_atoms, model.composition(batch))
    uncertainty = FeatureUncertainty(LastLayer, model)
    uncertainty.fit(model, [batch])
    features = {"_target_": "ubmd.uncertainty.LastLayer", "_partial_": True}
    target = {"_target_": "ubmd.uncertainty.FeatureUncertainty", "_partial_": True, "features": features}
    model_config = {"_target_": "ubmd.models.gmnn.GMNN", "species": list(species), **options}
    save_potential(path, model, uncertainty, model_config=model_config, uncertainty_config=target)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_structures("held_out.extxyz", STRUCTURES)
    for seed, hidden in enumerate(((6, 5), (6, 5), (7,))):
        write_potential(f"{seed}.ckpt", seed, hidden)
    return tmp_path


def committee(*words: str, members: str = "[0.ckpt,1.ckpt,2.ckpt]") -> int:
    return cli.main(["committee", f"members={members}", "device=cpu", "paths.run=run", *words])


def test_a_file_like_others(here: Path) -> None:
    assert committee("labelled=held_out.extxyz", "shift=true") == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert list(metrics) == ["member 0", "member 1", "member 2", "committee"]
    assert metrics["committee"]["coverage_atom"] >= 0.95
    for name in ("0.ckpt", "1.ckpt", "2.ckpt"):
        (here / name).unlink()  # the file is complete
    atoms = STRUCTURES[0].copy()
    atoms.calc = UBMDCalculator("run/model.ckpt")
    uncertainty = atoms.calc.get_property("atomic_uncertainty", atoms)
    error = np.sqrt(np.square(atoms.get_forces() - STRUCTURES[0].arrays["REF_forces"]).mean(1))
    assert np.mean(error <= uncertainty) > 0.8
    write_structures("start.xyz", [STRUCTURES[0]])
    short = ("dynamics.n_walkers=2", "dynamics.stopping.max_steps=6", "dynamics.frame_interval=3", "bias.window=2")
    limit = "dynamics.stopping.uncertainty_threshold=1e6"
    words = ("potential=run/model.ckpt", "device=cpu", "system.structure=start.xyz", "paths.run=md")
    assert cli.main(["md", *words, *short, limit]) == 0


def test_other_zeros_of_energy(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels correct each member; without, the uncertainty of the energy is told to be in doubt."""
    assert committee("labelled=held_out.extxyz", "paths.run=as_they_are") == 0
    told = capsys.readouterr()
    assert "mean energies differ by up to 2.0" in told.err
    assert "those of the structures that calibrate" in " ".join(told.out.split())
    assert committee("labelled=held_out.extxyz", "shift=true", "paths.run=shifted") == 0
    assert "mean energies differ" not in capsys.readouterr().err
    before, after = (json.loads(Path(f"{name}/metrics.json").read_text()) for name in ("as_they_are", "shifted"))
    assert before["member 2"]["energy_rmse_mev_per_atom"] > 1900
    assert after["committee"]["energy_rmse_mev_per_atom"] < 200


def test_without_labels_deviations_are_as_they_are(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert committee(members="[0.ckpt,2.ckpt]") == 0
    assert "not calibrated" in capsys.readouterr().err
    batch = collate(STRUCTURES[:1], 4.0)
    found = load_potential("run/model.ckpt")(batch)
    first, second = (load_potential(name)(batch).forces for name in ("0.ckpt", "2.ckpt"))
    assert found.atomic_uncertainty is not None
    expected = (0.5 * (first - second)).square().mean(1).sqrt()  # deviation of two
    torch.testing.assert_close(found.atomic_uncertainty, expected)


def test_what_cannot_be(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_potential("silver.ckpt", 0, (6, 5), species=("Au", "Cu", "Ag"))
    write_potential("double.ckpt", 0, (6, 5), dtype=torch.float64)
    assert committee("shift=true") == 2
    assert "needs labels" in capsys.readouterr().err
    assert committee(members="[0.ckpt,1.ckpt]") == 0
    for members, message in (
        (["0.ckpt"], "two potentials or more"),
        (["0.ckpt", str(here / "0.ckpt")], "names a potential twice"),
        (["0.ckpt", "silver.ckpt"], "knows the species Cu, Ag, Au, but 0.ckpt Cu, Au"),
        (["0.ckpt", "double.ckpt"], "train them with the same dtype"),
        (["0.ckpt", "run/model.ckpt"], "is a committee itself or an ensemble; name its members"),
    ):
        with pytest.raises(InputError, match=message):
            joined(members)
    with pytest.raises(InputError, match="holds a Committee, but model is a GMNN"):
        load_weights(load_potential("0.ckpt").model, "run/model.ckpt")
