"""Walkers of several systems in one exploration are those of a run of each system alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from ase.build import molecule

from tests.dynamics.walker_toys import Toy, assert_same, cluster, gas
from ubmd.dynamics.explore import WalkerExploration
from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.integrators.melchionna import Melchionna
from ubmd.dynamics.integrators.mtk import MTK
from ubmd.dynamics.several import (
    SystemWalkers,
    check_explorers,
    explore_systems,
    explorers_of,
    frames_of_systems,
)
from ubmd.dynamics.stopping import StoppingRules
from ubmd.dynamics.trajectory import read_trajectories, read_trajectory, write_trajectories
from ubmd.errors import InputError
from ubmd.observables import Torsion
from ubmd.systems.several import Systems

RULES = StoppingRules(None, max_steps=30)


def common(**options: Any) -> WalkerExploration:
    how = {"integrator": Langevin(temperature=[300.0, 500.0]), "stopping": RULES, "frame_interval": 10, "n_walkers": 6}
    return WalkerExploration(**how | options)


def systems(**options: Any) -> Systems:
    return Systems({"small": cluster(4), "big": cluster(7, 1), "crystal": gas()}, **options)


def walkers(of: Systems, explorers: dict[str, Any], folder: Path | None = None) -> dict[str, SystemWalkers]:
    return {
        name: SystemWalkers(
            explorer,
            [of.parts[name].atoms],
            of.seed(name, 3),
            None if folder is None else folder / f"walkers-{name}.pt",
        )
        for name, explorer in explorers.items()
    }


def test_walkers_are_those_of_each_system_alone(tmp_path: Path) -> None:
    """Also of a crystal at constant pressure beside molecules."""
    npt = common(integrator=Melchionna(dt=0.5, temperature=300.0), n_walkers=2)
    of = systems(dynamics={"crystal": npt}, weights={"big": 2.0})
    explorers = explorers_of(of, common())
    assert {name: how.n_walkers for name, how in explorers.items()} == {"small": 2, "big": 4, "crystal": 2}
    found = explore_systems(walkers(of, explorers, tmp_path), Toy(drive=0.1), round_index=2, dtype=torch.float64)
    for name, explorer in explorers.items():
        starts, seed = [of.parts[name].atoms], of.seed(name, 3)
        alone = explorer(Toy(drive=0.1), starts, seed=seed, round_index=2, dtype=torch.float64)
        assert_same(replace(found[name], inherited=()), replace(alone, inherited=()))
    np.testing.assert_array_equal(found["big"].temperature, [300.0, 500.0, 300.0, 500.0])
    assert np.ptp(np.linalg.det(found["crystal"].cell)) > 0
    # each is saved by itself, and goes on from there
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"walkers-{n}.pt" for n in sorted(explorers)]
    again = explore_systems(walkers(of, explorers, tmp_path), Toy(drive=0.1), round_index=2, dtype=torch.float64)
    assert_same(again["big"], found["big"])
    _check_trajectory(found, tmp_path / "t.h5")


def _check_trajectory(found: dict[str, Any], file: Path) -> None:
    write_trajectories(file, found)
    read = read_trajectories(file)
    assert list(read) == list(found) == ["small", "big", "crystal"]
    for name in found:
        assert_same(read[name], found[name])
    with pytest.raises(InputError, match=r"is of several systems \(small, big, crystal\)"):
        read_trajectory(file)
    with h5py.File(file) as data:
        assert data["systems/big/frames/positions"].shape == (4 * 3, 7, 3)  # pyright: ignore
    frames = frames_of_systems(found)
    sizes = {"small": 4, "big": 7, "crystal": len(gas())}
    assert [len(a) for a in frames] == [size for name, size in sizes.items() for _ in range(found[name].n_frames)]
    assert [a.info["system"] for a in frames] == [name for name in sizes for _ in range(found[name].n_frames)]


def test_a_system_without_a_name_is_a_run_as_ever() -> None:
    single = Systems({"": cluster(4)})
    how = common(workers=1, groups=2)
    assert explorers_of(single, how) == {"": how}
    found = explore_systems(walkers(single, {"": how}), Toy(), round_index=0)
    assert_same(found[""], how(Toy(), [cluster(4)], seed=3, round_index=0))
    assert "system" not in frames_of_systems(found)[0].info


def test_shares_follow_uncertainty() -> None:
    of = systems(weights={"small": 2.0})
    found = explorers_of(of, common(n_walkers=20, groups=2), {"small": 0.1, "big": 0.7, "crystal": 0.1})
    assert {name: how.n_walkers for name, how in found.items()} == {"small": 4, "big": 14, "crystal": 2}


@pytest.mark.parametrize(
    ("options", "how", "words"),
    [
        ({}, {"n_walkers": 5}, r"n_walkers=5 is too few for 3 systems, which need at least 6 "),
        (
            {"dynamics": {"big": 3}},
            {},
            r"system.dynamics.big is no dynamics; give it as \+dynamics@system",
        ),
        ({"dynamics": {"big": common(groups=2, workers=2)}}, {}, r"system.dynamics.big.workers=2: all systems share"),
        ({}, {"workers": 4}, r"dynamics.workers=4 must be at most the 3 groups of walkers of all systems"),
        ({}, {"integrator": Melchionna()}, r"but the structure of system small has pbc"),
    ],
)
def test_refuses(options: dict[str, Any], how: dict[str, Any], words: str) -> None:
    of = systems(**options)
    with pytest.raises(InputError, match=words):
        check_explorers(of, explorers_of(of, common(**how)), common(**how), Toy())


def test_a_bias_acts_on_all_systems_or_is_refused() -> None:
    of, bias = Systems({"water": molecule("H2O"), "ethanol": molecule("CH3CH2OH")}), Toy()
    bias.variables = {"t": Torsion([0, 1, 2, 3])}  # pyright: ignore
    with pytest.raises(InputError, match=r"bias.variables.t: .*\(the structure of system water\)"):
        check_explorers(of, explorers_of(of, common()), common(), bias)
    bias.variables = None  # pyright: ignore
    bias.acts_on_cell = "bias.tau_stress=0.5"  # pyright: ignore
    with pytest.raises(InputError, match=r"bias.tau_stress=0.5 needs dynamics that move the cell"):
        check_explorers(of, explorers_of(of, common()), common(), bias)
    crystal = systems(dynamics={"crystal": common(integrator=Melchionna())})
    check_explorers(crystal, explorers_of(crystal, common()), common(), bias)
    # an impulse every other step is for the cell alone to take
    bias.every, bias.between = 2, bias  # pyright: ignore
    with pytest.raises(InputError, match=r"bias.every=2 with .*: the cell of Melchionna takes no impulses"):
        check_explorers(crystal, explorers_of(crystal, common()), common(), bias)
    crystal = systems(dynamics={"crystal": common(integrator=MTK())})
    check_explorers(crystal, explorers_of(crystal, common()), common(), bias)
