from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from tests.interfaces.test_ase import MODEL, UNCERTAINTY, crystals, molecules, save
from tests.interfaces.test_scripted import ENSEMBLE, potential
from ubmd.cli.main import main
from ubmd.interfaces.ase import UBMDCalculator

pytest.importorskip("metatomic_ase", reason="metatomic is not installed: pip install metatomic-torch metatomic-ase")
metatomic = pytest.importorskip("ubmd.interfaces.metatomic")


def test_the_command_prints_the_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "model.ckpt", torch.float32)
    command = ["export", f"potential={tmp_path / 'model.ckpt'}", f"paths.root={tmp_path / 'runs'}", "dtype=float32"]
    assert main([*command, f"file={tmp_path / 'model.pt'}"]) == 0
    said = capsys.readouterr().out
    assert "float32, exported against ubmd" in said
    assert "force uncertainty" in said
    assert (tmp_path / "model.pt").is_file()
    assert main([*command, "file=model.ckpt"]) == 2
    assert "file=model.ckpt must end in .pt" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_another_program_computes_the_same(tmp_path: Path, dtype: str) -> None:
    from metatomic_ase import MetatomicCalculator  # pyright: ignore[reportMissingImports]

    trained = potential(MODEL, instantiate(UNCERTAINTY))
    differences = metatomic.export_metatomic(trained, tmp_path / "model.pt", dtype=dtype)
    assert set(differences) >= {"energy", "forces", "stress", "energy_uncertainty", "force_uncertainty", "feature"}
    assert list(tmp_path.iterdir()) == [tmp_path / "model.pt"]
    close = 1e-9 if dtype == "float64" else 1e-4
    assert max(differences.values()) < 10 * close
    theirs = MetatomicCalculator(str(tmp_path / "model.pt"), device="cpu", uncertainty_threshold=None)
    for atoms in (molecules(1, 0)[0], crystals(1, 0)[0]):
        ours = UBMDCalculator(trained)
        np.testing.assert_allclose(theirs.get_potential_energy(atoms), ours.get_potential_energy(atoms), atol=close)
        np.testing.assert_allclose(theirs.get_forces(atoms), ours.get_forces(atoms), atol=close)
        if atoms.pbc.all():
            np.testing.assert_allclose(theirs.get_stress(atoms), ours.get_stress(atoms), atol=close)
        energies = theirs.get_property("energies", atoms)
        np.testing.assert_allclose(energies.sum(), ours.get_potential_energy(atoms), atol=close)


def test_an_ensemble_and_a_part_of_the_atoms(tmp_path: Path) -> None:
    from metatensor.torch import Labels  # pyright: ignore[reportMissingImports]
    from metatomic.torch import ModelOutput  # pyright: ignore[reportMissingImports]
    from metatomic_ase import MetatomicCalculator  # pyright: ignore[reportMissingImports]

    made = {"_target_": "ubmd.uncertainty.ensemble.EnsembleUncertainty", "_partial_": True}
    trained = potential(ENSEMBLE, instantiate(made))
    metatomic.export_metatomic(trained, tmp_path / "model.pt")
    theirs = MetatomicCalculator(str(tmp_path / "model.pt"), device="cpu", uncertainty_threshold=None)
    atoms = crystals(1, 0)[0]
    ensemble = theirs.run_model(atoms, {"energy_ensemble": ModelOutput(unit="eV", sample_kind="system")})
    (members,) = ensemble["energy_ensemble"].block().values.detach().numpy()
    assert members.shape == (3,)
    np.testing.assert_allclose(members.mean(), UBMDCalculator(trained).get_potential_energy(atoms))
    parts = [torch.tensor([[0, 0], [0, 2]], dtype=torch.int32), torch.tensor([[0, 1]], dtype=torch.int32)]
    wanted = {"energy": ModelOutput(unit="eV", sample_kind="system")}
    energies = [
        theirs.run_model(atoms, wanted, selected_atoms=Labels(["system", "atom"], part))["energy"].block().values
        for part in parts
    ]
    np.testing.assert_allclose(sum(energies).item(), members.mean())  # type: ignore[union-attr]
