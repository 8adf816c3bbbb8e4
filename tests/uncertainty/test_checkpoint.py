from __future__ import annotations

import copy
import os
import random
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from ubmd.data.batch import collate
from ubmd.errors import InputError
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential
from ubmd.testing import potentials as contract
from ubmd.uncertainty import FeatureUncertainty, SketchedGradients
from ubmd.uncertainty.checkpoint import load_potential, save_potential
from ubmd.uncertainty.parts import PARTS, check_parts

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

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        saved(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.ckpt"]


FOREIGN = {
    "a function": {"_target_": "os.system", "command": "true"},
    "a module of torch": {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1},
    "a function of ubmd": {"_target_": "ubmd.models.gmnn.species_numbers", "species": ["H"]},
    "a class of ubmd that is no module": {"_target_": "ubmd.runs.store.RoundStore", "path": "x"},
    "not a name": {"_target_": ["ubmd.models.gmnn.GMNN"]},
    "the command line": {"_target_": "ubmd.__main__.main"},
    "a module of ubmd that is no part": {"_target_": "ubmd.models.readout.Readout", "n_inputs": 1, "hidden": []},
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
    assert str(part["_target_"]).strip("[']") in str(found.value)


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
    with pytest.raises(InputError, match="holds no round of `ubmd learn`, and no finished"):
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


def changed(path: Path, change: Callable[[dict[str, Any]], object], *, sign: bool = False) -> Path:
    """A potential whose contents ``change`` has changed in place, as a file of earlier versions, without a digest."""
    content = torch.load(saved(path), weights_only=True)
    if not sign:
        del content["digest"]
    change(content)
    torch.save(content, path)
    return path


def test_names_are_looked_up_before_anything_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing a module runs it: a module on the path, and ubmd's own command line."""
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("evil_module.Model", "ubmd.__main__.main", "ubmd.__main__", "ubmd.models.gmnn.nn.Linear"):
        monkeypatch.delitem(sys.modules, "ubmd.__main__", raising=False)
        path = saved(tmp_path / "model.ckpt", {"_target_": target})
        with pytest.raises(InputError, match="is not a part of a potential; do not trust it"):
            load_potential(path)
        assert not {"evil_module", "ubmd.__main__"} & sys.modules.keys()


def test_parts_are_what_the_configurations_name() -> None:
    for folder in ("model", "uncertainty"):
        for file in (Path(__file__).parents[2] / "conf" / folder).glob("*.yaml"):
            if "custom" not in file.stem:
                config = OmegaConf.to_container(OmegaConf.load(file))
                check_parts(config, folder)  # pyright: ignore[reportArgumentType]
    for name in ("os.system", "ubmd.runs.store.RoundStore", "ubmd.models.readout.Readout"):
        with pytest.raises(InputError, match=rf"model asks for {name}, which a potential's file must not name"):
            check_parts({"_target_": name}, "model")
    assert all(issubclass(part, nn.Module) for part in PARTS.values())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that was not imported, whose import leaves a mark."""
    folder = tmp_path / "site" / "lent_models"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(f"from pathlib import Path\nPath({str(tmp_path)!r}, 'imported').touch()\n")
    text = "import os\nfrom torch.nn import Linear\nfrom ubmd.models.gmnn import GMNN\n\n\nclass Own(GMNN):\n    pass\n"
    (folder / "models.py").write_text(text)
    (folder / "__main__.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield "lent_models"  # pyright: ignore[reportReturnType]
    for name in [name for name in sys.modules if name.split(".")[0] == "lent_models"]:
        del sys.modules[name]


def test_a_package_that_is_allowed(tmp_path: Path, package: str) -> None:
    """Its names are compared with what is allowed before it is imported."""
    path = saved(tmp_path / "model.ckpt", MODEL | {"_target_": f"{package}.models.Own"})
    with pytest.raises(InputError, match="do not trust it, or allow its package if you do: allow=lent_models"):
        load_potential(path)
    for other in (["lent_model"], ["lent_models.other"], "models"):
        with pytest.raises(InputError, match="do not trust it"):
            load_potential(path, allow=other)
    assert not (tmp_path / "imported").exists()
    for allowed in (package, [f"{package}.models"], [f"{package}.models.Own"]):
        assert type(load_potential(path, allow=allowed).model).__name__ == "Own"
    for wrong in ("ubmd", "a b", "", "__main__", "os.__main__", 3):
        with pytest.raises(InputError, match="must be the name of a package"):
            load_potential(path, allow=[wrong])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["models.os.system", "models.Linear", "models.GMNN", "__main__.Own", "models.No"])
def test_what_an_allowed_package_must_not_be_asked_for(name: str, tmp_path: Path, package: str) -> None:
    """Functions, classes of others, a program: not what the package offers."""
    path = saved(tmp_path / "model.ckpt", MODEL | {"_target_": f"{package}.{name}"})
    with pytest.raises(InputError, match=r"do not trust it|has no No"):
        load_potential(path, allow=package)
    assert f"{package}.__main__" not in sys.modules


@pytest.mark.parametrize("value", ["lent_models", "lent_models.models:Own", "lent_models.models:Own [extra]"])
def test_plug_ins_are_allowed(value: str, tmp_path: Path, package: str) -> None:
    """An installed package that says it is one; its entry point alone is read until it is asked for."""
    info = tmp_path / "site" / "lent_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lent-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ubmd.plugins]\nmine = {value}\n")
    load_potential(saved(tmp_path / "own.ckpt"))
    assert not (tmp_path / "imported").exists()
    path = saved(tmp_path / "model.ckpt", MODEL | {"_target_": f"{package}.models.Own"})
    assert type(load_potential(path).model).__name__ == "Own"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hidden": [10**4]}, "has the shape|is unknown"),
        ({"hidden": [10**12, 10**12]}, ""),
        ({"n_basis": 10**9}, "must be between 1 and 64"),
        ({"n_gauss": 10**9}, "must be between 1 and 64"),
        ({"n_gauss": 0}, "must be between 1 and 64"),
        ({"l_max": 40}, "must be 0, 1, 2 or 3"),
        ({"hidden": [8, -6]}, "one width or more"),
        ({"cutoff": float("nan")}, "is no number"),
        ({"cutoff": float("inf")}, "must be finite"),
        ({"cutoff": "4.0"}, "must be a number"),
        ({"cutoff": True}, "must be a number"),
        ({"species": "HCO"}, "must be a list of texts"),
        ({"species": ["H", "C", "N"]}, "species"),
        ({"species": ["H", "C", "Xx"]}, "not a chemical symbol"),
        ({"_args_": [1]}, "_args_ is not an option"),
        ({"_recursive_": False}, "_recursive_ is not an option"),
        ({"_convert_": "all"}, "_convert_ is not an option"),
        ({"self": 1}, "self is not an option"),
        ({"_partial_": True}, "is no model"),
    ],
)
def test_sizes_and_options(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    """Nothing is built of sizes that the weights do not have."""
    path = changed(tmp_path / "model.ckpt", lambda content: content["model"].update(options))
    with pytest.raises(InputError, match=rf"model\.ckpt .*({reason})"):
        load_potential(path)


def test_very_many_members(tmp_path: Path) -> None:
    member = {k: v for k, v in MODEL.items() if k != "species"} | {"_partial_": True}
    ensemble = {"_target_": "ubmd.models.ensemble.Ensemble", "species": ["H"], "n_members": 10**9, "member": member}
    path = changed(tmp_path / "model.ckpt", lambda content: content.update(model=ensemble))
    with pytest.raises(InputError, match="must be at most 100"):
        load_potential(path)


def test_sizes_of_members(tmp_path: Path) -> None:
    member = {k: v for k, v in MODEL.items() if k != "species"} | {"_partial_": True, "hidden": [16384, 16384]}
    committee = {"_target_": "ubmd.models.committee.Committee", "species": ["H"], "members": [member, member]}
    parts = {"model": committee, "uncertainty": {"_target_": "ubmd.uncertainty.EnsembleUncertainty", "_partial_": True}}
    path = changed(tmp_path / "model.ckpt", lambda content: content.update(parts))
    with pytest.raises(InputError, match=r"is (missing|unknown)"):
        load_potential(path)


def test_a_list_within_itself(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    doubled: list[Any] = ["x"]
    for _ in range(60):  # 2^60 values in a few bytes
        doubled = [doubled, doubled]
    for value in (endless, doubled):
        path = changed(tmp_path / "model.ckpt", lambda content, value=value: content["model"].update(hidden=value))
        with pytest.raises(InputError, match="more than 1000 values; do not trust it"):
            load_potential(path)


def entry(state: str, name: str, change: Callable[[torch.Tensor], object]) -> Callable[[dict[str, Any]], object]:
    def apply(content: dict[str, Any]) -> None:
        content[state][name] = change(content[state][name])

    return apply


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (entry("model_state", "beta", lambda t: t.fill_(torch.nan)), "not finite"),
        (entry("model_state", "beta", lambda t: t.half()), "float32 or all float64"),
        (entry("model_state", "beta", lambda t: t.float()), "float32 or all float64"),
        (entry("model_state", "beta", lambda t: t[:1].expand_as(t)), "no plain tensor"),
        (entry("model_state", "beta", lambda t: t.to_sparse()), "no plain tensors"),
        (entry("model_state", "beta", lambda t: t.to("meta")), "no plain tensors"),
        (entry("model_state", "beta", lambda t: t.tolist()), "no plain tensors"),
        (entry("model_state", "readout.weights.0", lambda t: t.fill_(1e308)), "not finite"),
        (entry("model_state", "scale", lambda t: t[:1]), "shape"),
        (entry("model_state", "scale", lambda t: t[None]), "shape"),
        (entry("model_state", "species", lambda t: t.flip(0)), "species of the weights"),
        (entry("model_state", "species", lambda t: t.int()), "type"),
        (entry("model_state", "species", lambda t: t.double()), "type"),
        (entry("model_state", "energy_unit", lambda t: -t), "energy_unit must be positive"),
        (entry("uncertainty_state", "total_scale", lambda t: -t), "negative values"),
        (entry("uncertainty_state", "atomic_scale", lambda t: t[:1].repeat(200)), "shape"),
        (entry("uncertainty_state", "atomic.whitening", lambda t: t[:1]), "shape"),
        (entry("uncertainty_state", "atomic._extra_state", lambda t: ~t), "has not been fitted"),
        (entry("uncertainty_state", "atomic._extra_state", lambda t: t.repeat(3)), "shape"),
        (lambda content: content["model_state"].pop("shift"), "shift is missing"),
        (lambda content: content["model_state"].update(extra=torch.zeros(2, dtype=torch.float64)), "extra is unknown"),
        (lambda content: content["model_state"].update({1: torch.zeros(2)}), "no plain tensors"),
        (lambda content: content.pop("uncertainty_state"), "no weights"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, change: Callable[[dict[str, Any]], object], reason: str) -> None:
    path = changed(tmp_path / "model.ckpt", change)
    with pytest.raises(InputError, match=rf"model\.ckpt .*{reason}"):
        load_potential(path)


def test_another_cutoff_for_the_same_weights(tmp_path: Path) -> None:
    """Nothing else in the file would tell."""
    path = changed(tmp_path / "model.ckpt", lambda content: content["model"].update(cutoff=4.5), sign=True)
    with pytest.raises(InputError, match="changed after it was written"):
        load_potential(path)
    load_potential(changed(path, lambda content: None))  # as earlier versions wrote it


def test_one_bit(tmp_path: Path) -> None:
    """torch itself does not look at the archive's checksums."""
    path = saved(tmp_path / "model.ckpt")
    good, whole = load_potential(path), bytearray(path.read_bytes())
    rng = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = load_potential(path)
        except InputError:
            continue
        for key, value in good.model.state_dict().items():  # the bit was between the records
            assert torch.equal(found.model.state_dict()[key], value)


def test_compressed_bomb(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.ckpt")
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    with pytest.raises(InputError, match=r"damaged \(compressed"):
        load_potential(path)


VALUES: list[Any] = [None, True, 0, -1, 1.5, "", "H", "${oops}", [], [1], ["H", "H"], {}, [[[]]], {"a": 1}, 10**30]


def broken(content: dict[str, Any], rng: random.Random) -> None:
    """Breaks a random entry of a configuration or a state."""
    part = content[rng.choice(["model", "uncertainty", "model_state", "uncertainty_state"])]
    key = rng.choice(list(part))
    value = part[key]
    if not isinstance(value, torch.Tensor):
        part[rng.choice([key, "_args_", "seed", "extra"])] = rng.choice(VALUES)
    elif rng.random() < 0.3:
        other = rng.choice(list(part))
        part[key], part[other] = part[other], value
    else:
        part[key] = rng.choice([value * 1e30, value[None], -value.double(), value.flatten()[:1], value.int(), 3])


def test_what_is_loaded_can_be_used(tmp_path: Path) -> None:
    """Contents broken at random are refused in a sentence, or make a potential that predicts."""
    path = saved(tmp_path / "model.ckpt")
    whole, rng, loaded = torch.load(path, weights_only=True), random.Random(1), 0
    del whole["digest"]
    batch = collate([contract.molecule()], CUTOFF, dtype=torch.float64)
    for _ in range(120):
        content = copy.deepcopy(whole)
        broken(content, rng)
        torch.save(content, path)
        try:
            potential = load_potential(path)
        except InputError:
            continue
        output, vectors = Potential(potential.model).atoms(batch)
        potential.uncertainty(potential.model, output, vectors, batch)
        loaded += 1
    assert 0 < loaded < 100


def test_files_of_earlier_releases_predict_as_they_did() -> None:
    """There was no digest, shifts were float32, and the scale of SiLU was rounded."""
    path = Path(__file__).parents[1] / "data" / "version_1" / "model.ckpt"
    assert "digest" not in torch.load(path, weights_only=True)
    loaded = load_potential(path)
    assert loaded.model.readout.silu_scale == 1.6765
    water = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    batch = collate([water], loaded.model.cutoff)
    prediction, vectors = Potential(loaded.model)(batch), batch.vectors()
    atomic = loaded.uncertainty(loaded.model, loaded.model(vectors, batch), vectors, batch)[1]
    assert prediction.energy.item() == pytest.approx(1.84268069, abs=1e-6)
    np.testing.assert_allclose(prediction.forces[1, :2], [0.05303580, -0.02717301], rtol=1e-4)
    np.testing.assert_allclose(atomic, [0.01364452, 0.01577259, 0.01577375], rtol=1e-4)
