"""What is fuzzed: whole files to damage, and the code that reads them."""

from __future__ import annotations

import io
import json
import logging.handlers
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import h5py
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hydra.utils import instantiate

from drills.compared import equal
from drills.mutations import Random, changed, damaged
from ubmd.analysis.comparison import compare_runs
from ubmd.cli.app import compose
from ubmd.commands.check import inspect
from ubmd.commands.compare import read_folders
from ubmd.data.batch import collate
from ubmd.data.inherit import Inherited
from ubmd.data.io import is_labelled, read_structures, write_structures
from ubmd.dynamics.exploration import Exploration, frames_to_atoms
from ubmd.dynamics.trajectory import read_trajectory, seal, write_trajectory
from ubmd.models.potential import Potential
from ubmd.runs.metrics import COLUMNS, read_metrics
from ubmd.runs.opening import open_run
from ubmd.runs.store import RoundStore
from ubmd.uncertainty.checkpoint import load_potential, save_potential


@dataclass(frozen=True)
class Target:
    """Something that reads input of one kind."""

    share: int
    """Its part of the inputs."""
    prepare: Callable[[Path], Any]
    """Makes what is to be damaged, in an empty folder."""
    make: Callable[[Any, Random, Path], Any]
    """A damaged input, written into an empty folder if it is a file."""
    take: Callable[[Any], object]
    """Reads it."""


def frames(symbols: str, n: int, *, periodic: bool) -> list[Atoms]:
    """Labelled structures."""
    out = []
    for number in range(n):
        atoms = bulk(symbols, cubic=True) if periodic else molecule(symbols)
        atoms.rattle(0.05, seed=number)
        atoms.info |= {"REF_energy": -1.5 * number, "round": number, "note": f"number {number}"}
        atoms.arrays["REF_forces"] = np.random.default_rng(number).normal(size=(len(atoms), 3))
        if periodic:
            atoms.info["REF_stress"] = np.diag([0.01, 0.02, 0.03])
        out.append(atoms)
    return out


def structure_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """Files by name, in the formats that the suffixes stand for."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for suffix in suffixes:
        for name, structures in {
            "cell": frames("Cu", 2, periodic=True),
            "molecule": frames("CH3OH", 3, periodic=False),
        }.items():
            path = folder / f"{name}{suffix}"
            if suffix == ".extxyz":
                write_structures(path, structures)
            elif suffix in (".vasp", ".cif", ".xsf", ".gen", ".json", ".pdb", ".xyz", ".cfg"):
                plain = Atoms(structures[0], cell=[8, 8, 8] if name == "molecule" else structures[0].cell)
                ase.io.write(path, plain)
            if path.exists():
                files[path.name] = path.read_bytes()
    return files


def damaged_file(files: dict[str, bytes], random: Random, folder: Path) -> Path:
    names = sorted(files)
    name = names[random.integers(len(names))]
    path = folder / (f"POSCAR{random.integers(3)}" if name.endswith(".vasp") else name)
    path.write_bytes(damaged(files[name], random, list(files.values())))
    return path


def take_structures(path: Path) -> None:
    """Reads a file whole or not at all; what it holds has to come back from a file that is written of it."""
    structures = read_structures(path)
    if path.suffix in (".xyz", ".extxyz"):
        lines, atoms = sum(bool(line.strip()) for line in path.read_bytes().splitlines()), sum(map(len, structures))
        assert atoms + len(structures) <= lines <= atoms + 2 * len(structures), "lines of the file were passed over"
    write_structures(path.with_name("again.extxyz"), structures)
    again = read_structures(path.with_name("again.extxyz"))
    assert len(again) == len(structures), "frames were lost on the way through a file"
    for one, other in zip(structures, again, strict=True):
        assert (one.numbers == other.numbers).all(), "elements changed on the way through a file"
        assert (one.pbc == other.pbc).all(), "pbc changed on the way through a file"
        assert np.allclose(one.positions, other.positions, rtol=1e-7, atol=1e-7), "positions changed"
        assert is_labelled(one) == is_labelled(other), "labels were lost on the way through a file"


MODEL = {
    "_target_": "ubmd.models.gmnn.GMNN",
    "species": ["H", "C", "O"],
    "cutoff": 4.0,
    "n_basis": 2,
    "n_gauss": 4,
    "hidden": [4, 4],
}
UNCERTAINTIES = {
    name: {
        "_target_": f"ubmd.uncertainty.feature_uncertainty.{name}",
        "_partial_": True,
        "features": {"_target_": "ubmd.uncertainty.features.SketchedGradients", "_partial_": True, "n_projections": 4},
    }
    for name in ("FeatureUncertainty", "DistanceUncertainty")
}


def potentials(folder: Path) -> list[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, config in UNCERTAINTIES.items():
        model = instantiate(MODEL, seed=1)
        uncertainty = instantiate(config)(model=model, seed=2)
        uncertainty.fit(model, [collate(frames("CH3OH", 2, periodic=False), 4.0)])
        save_potential(folder / name, model, uncertainty, model_config=MODEL, uncertainty_config=config)
        files.append((folder / name).read_bytes())
    return files


def damaged_potential(files: list[bytes], random: Random, folder: Path) -> Path:
    """A potential with damaged bytes, with a damaged part in an intact archive, or with other content."""
    data, path = files[random.integers(len(files))], folder / "model.ckpt"
    way = random.integers(4)
    if way == 0:
        path.write_bytes(damaged(data, random, files))
    elif way == 1:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(path, "w") as new:
            names = old.namelist()
            chosen = next(n for n in names if n.endswith("data.pkl")) if random.integers(2) else random.choice(names)
            for name in names:
                content = old.read(name)
                new.writestr(name, damaged(content, random, [content]) if name == chosen else content)
    else:
        torch.save(changed(torch.load(io.BytesIO(data), weights_only=True), random), path)
    return path


def take_potential(path: Path) -> None:
    """Loads a potential and uses it once: whatever loads has to work."""
    trained = load_potential(path)
    dtype = next(trained.model.parameters()).dtype
    batch = collate([molecule("CH3OH")], trained.model.cutoff, dtype=dtype)
    Potential(trained.model)(batch)
    vectors = batch.vectors()
    trained.uncertainty(trained.model, trained.model(vectors, batch), vectors, batch)


def trajectory(folder: Path) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    n, f, w = 3, 4, 2
    values = {"numbers": np.array([8, 1, 1]), "pbc": np.zeros(3, bool), "walker": np.repeat([0, 1], 2)}
    values |= {"step": np.array([5, 10, 5, 10]), "positions": np.random.default_rng(0).normal(size=(f, n, 3))}
    values |= {"cell": np.zeros((f, 3, 3)), "atomic_uncertainty": np.ones((f, n)), "walkers": np.arange(w)}
    values |= {name: np.ones(f) for name in ("energy", "uncertainty", "tau")}
    values |= {"reasons": np.ones(w, np.int8), "steps": np.full(w, 10)}
    values |= {"temperature": np.full(w, 300.0), "max_uncertainty": np.ones(w)}
    inherited = tuple(Inherited.of(Atoms("OH2", info={"charge": 1})) for _ in range(w))
    write_trajectory(folder / "trajectory.h5", Exploration(**values, inherited=inherited))
    return (folder / "trajectory.h5").read_bytes()


def damaged_trajectory(data: bytes, random: Random, folder: Path) -> Path:
    path = folder / "trajectory.h5"
    path.write_bytes(damaged(data, random, [data]) if random.integers(2) else data)
    if path.read_bytes() == data:
        with h5py.File(path, "r+") as file:
            names: list[str] = []
            file.visit(names.append)
            name = names[random.integers(len(names))]
            content = changed({"it": file[name][()]}, random) if isinstance(file[name], h5py.Dataset) else {}
            del file[name]
            if "it" in content and isinstance(content["it"], np.ndarray):
                text = content["it"].dtype == object
                file.create_dataset(name, data=content["it"], dtype=h5py.string_dtype() if text else None)
        seal(path)
    return path


def take_trajectory(path: Path) -> None:
    found = read_trajectory(path)
    frames_to_atoms(found)
    _ = found.md_steps


@dataclass(frozen=True)
class WholeRun:
    """A run with two finished rounds."""

    files: dict[str, bytes]
    config: dict[str, Any]
    results: list[Any]


def run_folder(folder: Path) -> WholeRun:
    from omegaconf import OmegaConf

    cfg = compose("learn", ["experiment=bulk_demo", "logger=csv", "seed=1"], folder=folder / "run")
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    config = {str(key): value for key, value in config.items()}
    store = RoundStore(folder / "run")
    open_run(store, config)
    store.add_initial(frames("Cu", 2, periodic=True))
    metrics = [dict.fromkeys(COLUMNS, 0.5) | {"round": index, "n_train": 7 + index, "n_valid": 1} for index in (0, 1)]
    for index, row in enumerate(metrics):
        write_structures(store.folder(index).labelled, frames("Cu", 2, periodic=True))
        store.commit(index, row | {"n_selected": None if index else 4})
    files = {str(path.relative_to(store.path)): path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    return WholeRun(files, config, results(store))


def results(store: RoundStore) -> list[Any]:
    """What a run continues from."""
    structures = [(a.numbers, a.positions, a.arrays["REF_forces"], a.info["REF_energy"]) for a in store.structures(2)]
    told = read_metrics(store.path / "metrics.csv"), len(read_structures(store.dataset))
    return [[record["metrics"] for record in store.records()], structures, told]


def damaged_run(seeds: WholeRun, random: Random, folder: Path) -> tuple[Path, WholeRun]:
    """A run with one of its files damaged, as bytes or as what it holds."""
    names = sorted(seeds.files)
    chosen = names[random.integers(len(names))]
    for name, content in seeds.files.items():
        path = folder / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == chosen and name.endswith(".json") and random.integers(2):
            content = json.dumps(changed(json.loads(content), random), default=str).encode()
        elif name == chosen:
            content = damaged(content, random, list(seeds.files.values()))
        path.write_bytes(content)
    return folder / "run", seeds


def take_run(made: tuple[Path, WholeRun]) -> None:
    """Compares a run with itself, checks it, opens it as a continuation does: to the same results or with a word."""
    path, whole = made
    found = read_folders([path])
    if found.runs:
        compare_runs(found.runs)
    inspect(path)
    store, words = RoundStore(path), logging.handlers.BufferingHandler(1000)
    words.setLevel(logging.WARNING)
    log = logging.getLogger("ubmd")
    log.addHandler(words)
    try:
        open_run(store, whole.config)
    finally:
        log.removeHandler(words)
    assert words.buffer or equal(results(store), whole.results), "other results without a word"


OVERRIDES = """
experiment=ala2_demo experiment=bulk_demo seed=1 bias.tau=0.25 learning.batch_size=4 name=my
size=small model.hidden=[8,8] model.cutoff=4.0 uncertainty=posterior selection=max_det
trainer.max_steps=60 trainer.max_epochs=-1 data.batch_size=8 data.validation_fraction=0.1
dynamics.n_walkers=4 dynamics.integrator.dt=0.1 dynamics.stopping.max_steps=60 bias.window=20 dynamics=npt
dynamics.integrator.temperature=300 executor=processes executor.workers=2 threads=1 system=copper
system.n_initial=4 system.displacement=0.1 system.species=[H,C,N,O] dtype=float64 reference=ase
reference.calculator._target_=ase.calculators.emt.EMT labelling.max_force=50 data.test=null
calibration.atomic.alpha=0.1 learning.max_rounds=2 learning.warm_start=0.25 training.loss.stress=0.01
+system.info.charge=1 ~system.variables callbacks=ema training.learning_rates.readout=0.01 logger=csv
""".split()  # noqa: SIM905
WORDS = """
nan inf -1 0 1e400 2.5 abc null true '' [] {} [1,2] {a:1} ??? 1,2 Å ${seed} ${oc.env:HOME} ${nothing}
glob(*) range(3) choice(1,2) / . ~ a=b " \\ None 99999999999999999999 -0.0 1e-320 ubmd.cli.main.main os.system
[[1]] 0x10 on off 1_0 tag(x,1)
""".split()  # noqa: SIM905


def damaged_words(seeds: None, random: Random, folder: Path) -> tuple[list[str], Path]:
    """Overrides of ``ubmd learn``, at least one of them with another value, key or character."""
    words = ["experiment=" + ("ala2_demo" if random.random() < 0.2 else "bulk_demo"), "logger=csv"]
    words += [OVERRIDES[i] for i in random.choice(len(OVERRIDES), random.integers(1, 4), replace=False)]
    place = int(random.integers(len(words)))
    key, value = words[place].partition("=")[::2]
    way = random.integers(5)
    if way <= 1:
        words[place] = f"{key}={WORDS[random.integers(len(WORDS))]}"
    elif way == 2:
        text = damaged(words[place].encode(), random, [w.encode() for w in WORDS]).decode(errors="replace")
        words[place] = "".join(" " if not char.isprintable() else char for char in text)
    elif way == 3:
        words[place] = f"{key}.{('x', 'max', '_target_', '0', '')[random.integers(5)]}={value}"
    else:
        words[place] = f"{('+', '~', '++', 'hydra.', '@')[random.integers(5)]}{words[place]}"
    return words, folder


def take_words(made: tuple[list[str], Path]) -> None:
    """Composes, checks and builds what a run consists of; nothing is computed."""
    from ubmd.commands.learn import prepare
    from ubmd.progress import run_progress

    words, folder = made
    (folder / "words.txt").write_text("\n".join(words), encoding="utf-8", errors="surrogateescape")
    cfg = compose("learn", [*words, "data.test=null"], folder=folder / "run")
    with run_progress() as progress, ExitStack() as stack:
        prepare(cfg, progress, [], stack)


FORMATS = (".vasp", ".cif", ".xsf", ".gen", ".json", ".pdb", ".xyz", ".cfg")
TARGETS: dict[str, Target] = {
    "extxyz": Target(600, partial(structure_files, suffixes=(".extxyz",)), damaged_file, take_structures),
    "formats": Target(200, partial(structure_files, suffixes=FORMATS), damaged_file, take_structures),
    "potential": Target(27, potentials, damaged_potential, take_potential),
    "trajectory": Target(120, trajectory, damaged_trajectory, take_trajectory),
    "run": Target(50, run_folder, damaged_run, take_run),
    "words": Target(3, lambda folder: None, damaged_words, take_words),
}
"""Everything that is fuzzed, by name."""
