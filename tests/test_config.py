from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ubmd import config, paths
from ubmd.cli import app
from ubmd.cli.command import COMMANDS
from ubmd.errors import InputError
from ubmd.provenance import provenance

EXPERIMENTS = sorted(file.stem for file in (paths.config_dir() / "experiment").glob("*.yaml"))


class Thing:
    def __init__(self, size: int, *, tau: float = 0.25, inner: Any = None) -> None: ...


class Open:
    def __init__(self, size: int, **more: Any) -> None: ...


def thing(**keys: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.Thing", **keys}


@pytest.mark.parametrize(
    "node",
    [
        {"a": thing(size=1)},
        {"a": thing(size="${b}"), "b": 2},
        {"a": thing(_partial_=True, tau=1.0)},
        {"a": thing(_args_=[1], tau=1.0)},
        {"a": thing(size=1, inner=[thing(size=2), {"x": thing(size=3)}])},
        {"a": {"_target_": f"{__name__}.Open", "size": 1, "anything": 2}},
        {"a": {"_target_": "hydra.utils.get_method", "path": "os.getcwd"}},
        {"a": {1: 0.0, 6: 1.0}, "b": None, "c": [1, "x"]},
    ],
)
def test_valid(node: dict[str, Any]) -> None:
    config.validate(OmegaConf.create(node))


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (
            thing(size=1, taau=1),
            "a.taau is not an option of Thing; did you mean a.tau? (valid: inner, size, tau)",
        ),
        (thing(), "Thing needs a.size: give it as a.size=VALUE"),
        (thing(size="???"), "a.size is missing: give it as a.size=VALUE"),
        (
            thing(size=1, inner=[thing(size=1, sise=2)]),
            "a.inner[0].sise is not an option of Thing; did you mean a.inner[0].size? (valid: inner, size, tau)",
        ),
        ({"_target_": "nosuch.Thing"}, "a._target_=nosuch.Thing does not exist: no module named nosuch"),
        (
            {"_target_": "ubmd.errors.InputEror"},
            "a._target_=ubmd.errors.InputEror does not exist: ubmd.errors has no InputEror; "
            "did you mean ubmd.errors.InputError?",
        ),
        (
            {"_target_": "ubmd.erors.InputError"},
            "a._target_=ubmd.erors.InputError does not exist: ubmd has no erors; did you mean ubmd.errors?",
        ),
        ({"_target_": "ubmd.__version__"}, "a._target_=ubmd.__version__ is neither a class nor a function"),
    ],
)
def test_invalid(node: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        config.validate(OmegaConf.create({"a": node}))
    assert str(caught.value) == sentence


def test_target_whose_module_needs_something_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy_module.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="needs the module not_installed_anywhere, which is not installed"):
        config.locate("needy_module.Thing")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "default"),
        (["experiment=x", "paths.root=/a", "logger=csv", "hydra.job.name=x"], "default"),
        (["seed=1", "bias.tau=0.50"], "bias.tau-0.5+seed-1"),
        (["seed=1", "seed=2"], "seed-2"),
        (["+bias.tau=1"], "bias.tau-1"),
        (["~bias.tau"], "no-bias.tau"),
        (["model=null"], "model-null"),
    ],
)
def test_run_name(overrides: list[str], name: str) -> None:
    assert config.run_name(overrides, ["experiment", "paths", "paths.*", "logger"]) == name


def test_run_name_is_distinct_and_short_and_an_override_value() -> None:
    many = [["file=a/b"], ["file=a-b"], ["x=[1,2]"], ["x=[1-2]"], ["x='1'"], ["x=1"], ["y=" + "a" * 300]]
    many.append(["y=" + "a" * 301])
    names = [config.run_name(overrides) for overrides in many]
    assert len(set(names)) == len(many)
    for name in names:
        assert len(name) < 200
        assert "/" not in name
        with app.open_hydra() as hydra:
            assert app.parse(hydra, [f"run=runs/learn/{name}"])[0].value() == f"runs/learn/{name}"


def test_run_name_fits_into_a_file_name() -> None:
    names = [config.run_name([f"y='{'я' * n}'"]) for n in (120, 150, 151, 301)]
    assert names[0].startswith(f"y--{'я' * 120}-")  # as it has always been
    assert len(set(names)) == 4
    assert all(len(name.encode()) <= 255 for name in names)  # bytes, what file systems take


def test_plain() -> None:
    assert config.plain(OmegaConf.create({"a": 1, "b": ["${a}"]})) == {"a": 1, "b": [1]}
    with pytest.raises(InputError, match=r"a: Interpolation key 'nosuch' not found"):
        config.plain(OmegaConf.create({"a": "${nosuch}"}))


def test_provenance() -> None:
    versions = provenance()
    assert versions["torch"] == torch.__version__
    assert {"ubmd", "lightning", "ase", "numpy", "hydra-core", "python", "platform", "git"} <= set(versions)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", "here/runs"),
        (" ", "here/runs"),
        (None, "here/runs"),
        ("~/x y", "home/x y"),
        ("Größe", "here/Größe"),
        ("../b", "b"),
    ],
)
def test_folders(text: str | None, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UBMD_RUNS", text or "")
    assert config.folder_path(text, "runs") == str(tmp_path / path)
    assert app.compose("learn", ["experiment=bulk_demo"]).paths.root == str(tmp_path / path)
    if text:
        composed = app.compose("learn", ["experiment=bulk_demo", f"paths.root='{text}'"])
        assert composed.paths.run == str(tmp_path / path / "bulk_demo" / "default")


@pytest.mark.parametrize("name", list(COMMANDS))
def test_base_configurations_compose(name: str, tmp_path: Path) -> None:
    keys = config.base_keys(name)
    assert {"name", "seed", "paths", "logger", "experiment"} <= set(keys)
    with app.open_hydra() as hydra:
        cfg = hydra.config_loader.load_configuration(name, [], app.RunMode.MULTIRUN)
    assert cfg.name == name
    assert set(cfg) - {"hydra"} <= set(keys)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_has_a_name_of_its_own(experiment: str) -> None:
    names = [OmegaConf.load(file).get("name") for file in (paths.config_dir() / "experiment").glob("*.yaml")]
    own = OmegaConf.load(paths.config_dir() / "experiment" / f"{experiment}.yaml").get("name")
    assert own is not None
    assert own not in COMMANDS
    assert names.count(own) == 1


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment: str) -> None:
    """With every class that it names, and every option of that class."""
    cfg = app.compose("learn", [f"experiment={experiment}"])
    assert cfg.name == experiment


def test_settings_of_the_paper_for_mil53() -> None:
    cfg = app.compose("learn", ["experiment=mil53"])
    assert (cfg.model.cutoff, cfg.training.loss.stress, cfg.data.batch_size) == (6.0, 0.01, 32)
    assert (cfg.system.n_initial, cfg.system.displacement, cfg.system.strain) == (32, 0.08, 0.02)
    assert (cfg.dynamics.n_walkers, cfg.learning.batch_size, cfg.learning.max_structures) == (32, 32, 512)
    assert (cfg.bias.tau, cfg.bias.tau_stress, cfg.labelling.max_force) == (0.0, 0.5, 20.0)
    integrator = cfg.dynamics.integrator
    assert (integrator.dt, integrator.temperature, integrator.pressure) == (0.5, 600.0, 0.0)
    assert (integrator.thermostat_time, integrator.barostat_time) == (100.0, 1000.0)
    stopping = cfg.dynamics.stopping
    assert (stopping.max_steps, stopping.uncertainty_threshold) == (20000, 1.0)


@pytest.mark.usefixtures("toy_conf")
def test_compose_for_notebooks(tmp_path: Path) -> None:
    cfg = app.compose("learn", ["experiment=demo"], folder=tmp_path / "here")
    assert cfg.paths.run == str(tmp_path / "here")
    assert "hydra" not in cfg
    assert not (tmp_path / "here").exists()
    assert config.plain(cfg)["bias"]["denominator"] == 2
    with pytest.raises(InputError, match="did you mean seed"):
        app.compose("learn", ["sed=1"])


@pytest.mark.parametrize(
    ("mode", "offline"), [(None, True), ("", True), ("offline", True), ("dryrun", True), ("online", False)]
)
def test_loggers(mode: str | None, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode is None:
        monkeypatch.delenv("WANDB_MODE")
    else:
        monkeypatch.setenv("WANDB_MODE", mode)
    loader_paths = {"run": str(tmp_path), "run_name": "seed-1"}
    files = [paths.config_dir() / "logger" / f"{kind}.yaml" for kind in ("csv", "wandb")]
    logger = OmegaConf.merge(*map(OmegaConf.load, files))
    cfg = OmegaConf.create({"name": "demo", "paths": loader_paths, "logger": logger})
    config.validate(cfg)
    assert cfg.logger.wandb.offline is offline
    csv = instantiate(cfg.logger.csv)
    assert Path(csv.log_dir) == tmp_path / "csv" / "version_0"
    if offline:
        wandb = instantiate(cfg.logger.wandb)  # starts no run before it is used
        assert wandb.save_dir == str(tmp_path)
