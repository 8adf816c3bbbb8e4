from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from tests.models import contract
from ubmd.data.batch import collate
from ubmd.errors import InputError
from ubmd.models.checkpoint import load_potential, save_potential
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential
from ubmd.uncertainty import FeatureUncertainty, SketchedGradients

CUTOFF = 4.0
MODEL: dict[str, Any] = {
    "_target_": "ubmd.models.gmnn.GMNN",
    "species": ["H", "C", "O"],
    "cutoff": CUTOFF,
    "n_basis": 3,
    "hidden": [8, 6],
}
UNCERTAINTY: dict[str, Any] = {
    "_target_": "ubmd.uncertainty.feature_uncertainty.FeatureUncertainty",
    "_partial_": True,
    "features": {
        "_target_": "ubmd.uncertainty.features.SketchedGradients",
        "_partial_": True,
        "n_projections": 16,
    },
    "regularisation": 0.02,
}


def trained(dtype: torch.dtype = torch.float64) -> tuple[GMNN, FeatureUncertainty]:
    """A model off its initial values, with an uncertainty that is fitted and calibrated."""
    model: GMNN = instantiate(MODEL, seed=11).to(dtype)
    with torch.no_grad():
        model.energy_unit.fill_(0.3)
        model.shift.add_(2.0)
    uncertainty = FeatureUncertainty(
        partial(SketchedGradients, n_projections=16), model, regularisation=0.02, seed=12
    ).to(dtype)
    uncertainty.fit(model, [collate(contract.structures(), CUTOFF, dtype=dtype)])
    uncertainty.atomic_scale.fill_(2.5)
    uncertainty.total_scale.fill_(3.5)
    return model, uncertainty


def saved(path: Path, model_config: Any = MODEL, uncertainty_config: Any = UNCERTAINTY) -> Path:
    model, uncertainty = trained()
    save_potential(path, model, uncertainty, model_config=model_config, uncertainty_config=uncertainty_config)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    """Energies, forces and calibrated uncertainties come back bit by bit."""
    path = tmp_path / "new" / "model.ckpt"
    model, uncertainty = trained(dtype)
    save_potential(path, model, uncertainty, model_config=MODEL, uncertainty_config=UNCERTAINTY)
    loaded = load_potential(path)
    other = contract.molecule()
    other.rattle(0.1, seed=1)
    batch = collate([other, contract.crystal()], CUTOFF, dtype=dtype)
    expected, found = Potential(model)(batch, stress=True), Potential(loaded.model)(batch, stress=True)
    assert torch.equal(found.energy, expected.energy)
    assert torch.equal(found.forces, expected.forces)
    vectors = batch.vectors()
    pairs = [
        u(m, m(vectors, batch), vectors, batch) for m, u in ((model, uncertainty), (loaded.model, loaded.uncertainty))
    ]
    for ours, theirs in zip(*pairs, strict=True):
        assert torch.equal(ours, theirs)
        assert (ours > 0).all()
    assert (loaded.uncertainty.atomic_scale == 2.5).all()
    assert (loaded.uncertainty.total_scale == 3.5).all()
    assert [p.name for p in path.parent.iterdir()] == ["model.ckpt"]


def test_loaded_potential_is_for_use(tmp_path: Path) -> None:
    loaded = load_potential(saved(tmp_path / "model.ckpt"))
    for module in (loaded.model, loaded.uncertainty):
        assert isinstance(module, nn.Module)
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
    assert Potential(loaded.model).cutoff == CUTOFF


def test_file_holds_tensors_and_plain_types(tmp_path: Path) -> None:
    content = torch.load(saved(tmp_path / "model.ckpt"), weights_only=True)
    assert content["model"] == MODEL
    assert content["uncertainty"] == UNCERTAINTY
    names = {f"{k}.{name}" for k in ("model_state", "uncertainty_state") for name in content[k]}
    assert {"model_state.beta", "model_state.energy_unit", "uncertainty_state.features.outer_0"} <= names


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "model.ckpt")
    before = path.read_bytes()

    def fail(content: object, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        saved(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.ckpt"]


FOREIGN = {
    "a function": {"_target_": "os.system", "command": "true"},
    "a module of torch": {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1},
    "a function of ubmd": {"_target_": "ubmd.models.gmnn.species_numbers", "species": ["H"]},
    "a class of ubmd that is no module": {"_target_": "ubmd.rounds.RoundStore", "path": "x"},
    "not a name": {"_target_": ["ubmd.models.gmnn.GMNN"]},
}


@pytest.mark.parametrize("part", [*FOREIGN.values()], ids=[*FOREIGN])
@pytest.mark.parametrize("place", ["model", "features", "deep"])
def test_refuses_to_call_anything_else(tmp_path: Path, part: dict[str, Any], place: str) -> None:
    model, uncertainty = dict(MODEL), dict(UNCERTAINTY)
    if place == "model":
        model = part
    elif place == "features":
        uncertainty["features"] = part
    else:
        model["species"] = ["H", {"inner": [part]}]
    path = saved(tmp_path / "model.ckpt", model, uncertainty)
    with pytest.raises(InputError, match="do not trust it") as found:
        load_potential(path)
    assert str(part["_target_"]) in str(found.value)


@pytest.mark.parametrize(
    "text",
    [
        "${oc.decode:'{_target_: pathlib.Path.touch, _args_: [{_target_: pathlib.Path, _args_: [FILE]}]}'}",
        "${oc.create:{_target_: pathlib.Path.touch, _args_: [{_target_: pathlib.Path, _args_: [FILE]}]}}",
        "${oc.env:HOME}",
    ],
    ids=["decode", "create", "env"],
)
def test_refuses_interpolations(tmp_path: Path, text: str) -> None:
    """OmegaConf would make a `_target_` of a text, or read the environment."""
    touched = tmp_path / "touched"
    path = saved(tmp_path / "model.ckpt", MODEL | {"species": text.replace("FILE", str(touched))})
    with pytest.raises(InputError, match="do not trust it"):
        load_potential(path)
    assert not touched.exists()


def test_refuses_modules_that_ubmd_imports(tmp_path: Path) -> None:
    part = {"_target_": "ubmd.models.gmnn.nn.Linear", "in_features": 1, "out_features": 1}
    with pytest.raises(InputError, match="do not trust it"):
        load_potential(saved(tmp_path / "model.ckpt", part))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.ckpt does not exist; give"):
        load_potential(tmp_path / "nowhere.ckpt")
    with pytest.raises(InputError, match="does not exist"):
        load_potential(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello world", b"{}", bytes(200), b"PK\x03\x04" + bytes(50)],
    ids=["empty", "text", "json", "zeros", "zip"],
)
def test_garbage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a potential written by ubmd"):
        load_potential(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_half_a_file(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path / "model.ckpt")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="is not a potential written by ubmd"):
        load_potential(path)


def test_damaged_files(tmp_path: Path) -> None:
    """Whatever torch raises for damaged bytes becomes the one message."""
    path = tmp_path / "model.ckpt"
    rng = np.random.default_rng(0)
    for _ in range(60):
        path.write_bytes(b"\x80\x02" + rng.bytes(40))
        with pytest.raises(InputError, match="is not a potential written by ubmd"):
            load_potential(path)


@pytest.mark.parametrize("content", [{"a": 1}, [1], 4, "format", {"state_dict": {}}, None])
def test_other_contents(tmp_path: Path, content: object) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    with pytest.raises(InputError, match="is not a potential written by ubmd"):
        load_potential(path)


def test_code_is_not_run(tmp_path: Path) -> None:
    """A pickle that calls a function when it is read."""

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"format": 1, "model": Touch()}, tmp_path / "model.ckpt")
    with pytest.raises(InputError, match="is not a potential written by ubmd"):
        load_potential(tmp_path / "model.ckpt")
    assert not (tmp_path / "touched").exists()


def test_other_format(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / "model.ckpt")
    with pytest.raises(InputError, match="has format 99, this version of ubmd reads 1"):
        load_potential(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"model": {**MODEL, "hidden": [5, 6]}},
        {"model": {**MODEL, "hiden": [8, 6]}},
        {"model": {k: v for k, v in MODEL.items() if k != "_target_"}},
        {"model_state": {}},
    ],
    ids=["no model", "other sizes", "unknown option", "no target", "no weights"],
)
def test_parts_that_do_not_fit(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = saved(tmp_path / "model.ckpt")
    content = torch.load(path, weights_only=True) | changes
    torch.save({k: v for k, v in content.items() if v is not None}, path)
    with pytest.raises(InputError, match=r"model\.ckpt"):
        load_potential(path)
