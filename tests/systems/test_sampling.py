"""Test structures from dynamics: reproducible, physical, sampled once."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write

from ubmd.errors import InputError
from ubmd.observables import Torsion, values_of
from ubmd.reference.alanine_dipeptide import PHI, initial_structure
from ubmd.reference.ff19sb import FF19SB
from ubmd.systems import sampling
from ubmd.systems.sampling import cached_test_set, sample_ff19sb
from ubmd.units import KB


def digest(structures: list[Atoms]) -> str:
    parts = [a.positions.tobytes() + a.arrays["REF_forces"].tobytes() for a in structures]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("cmap", [False, True])
def test_labels_are_the_references(cmap):
    structures = sample_ff19sb(5, duration_ps=1.0, seed=3, cmap=cmap)
    reference = FF19SB(cmap=cmap)
    for atoms in structures:
        bare = Atoms(atoms.numbers, positions=atoms.positions)
        label = reference.compute(bare)
        assert atoms.info == {"REF_energy": label.energy}
        np.testing.assert_array_equal(atoms.arrays["REF_forces"], label.forces)
        np.testing.assert_allclose(atoms.positions.mean(axis=0), 0, atol=1e-8)


def test_reproducible_in_a_process_and_across_processes():
    def sample(seed: int) -> str:
        return digest(sample_ff19sb(4, duration_ps=1.0, seed=seed))

    first, other, again = sample(7), sample(8), sample(7)
    assert first == again != other
    script = "from test_sampling import digest, sample_ff19sb;print(digest(sample_ff19sb(4, duration_ps=1.0, seed=7)))"
    here = os.path.dirname(__file__)
    fresh = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in [here, *sys.path] if p)},
    )
    assert fresh.stdout.strip() == first


def test_draws_distinct_frames_of_the_whole_trajectory(monkeypatch):
    steps: list[int] = []
    positions_at = sampling._Langevin.positions_at

    def recorded(self, step):
        steps.append(step)
        return positions_at(self, step)

    monkeypatch.setattr(sampling._Langevin, "positions_at", recorded)
    structures = sample_ff19sb(20, duration_ps=1.0, seed=0, timestep_fs=0.5, record_every=100)
    assert steps == [100 * (k + 1) for k in range(20)]  # all 20 frames, each once, none left out
    assert len({a.positions.tobytes() for a in structures}) == 20
    # In random order: neighbours in time are not neighbours in the list.
    steps.clear()
    sample_ff19sb(5, duration_ps=1.0, seed=0, record_every=10)
    assert steps == sorted(set(steps))
    assert len(steps) == 5
    assert max(steps) <= 2000


def test_several_trajectories_share_the_time(monkeypatch):
    seeds: list[tuple[int, int]] = []
    steps: list[list[int]] = []
    make, positions_at = sampling._Langevin.__init__, sampling._Langevin.positions_at

    def made(self, cmap, temperature, timestep_fs, friction_per_ps, *own):
        seeds.append(own)
        steps.append([])
        make(self, cmap, temperature, timestep_fs, friction_per_ps, *own)

    def recorded(self, step):
        steps[-1].append(step)
        return positions_at(self, step)

    monkeypatch.setattr(sampling._Langevin, "__init__", made)
    monkeypatch.setattr(sampling._Langevin, "positions_at", recorded)
    structures = sample_ff19sb(100, duration_ps=1.0, seed=3, trajectories=4)
    assert steps == [[20 * (k + 1) for k in range(25)]] * 4  # all frames that there are
    assert len(set(seeds)) == 4
    assert len({a.positions.tobytes() for a in structures}) == 100
    with pytest.raises(InputError, match="96 frames"):
        sample_ff19sb(100, duration_ps=0.96, seed=3, trajectories=4)


def test_energy_agrees_with_equipartition():
    """60 vibrations hold kT/2 each above the minimum, roughly: torsions are no springs."""
    energies = np.array([a.info["REF_energy"] for a in sample_ff19sb(300, duration_ps=60.0, seed=1)])
    minimum = FF19SB().compute(initial_structure()).energy
    expected = 30 * KB * 1200.0
    assert energies.mean() - minimum == pytest.approx(expected, rel=0.12)
    cold = np.array([a.info["REF_energy"] for a in sample_ff19sb(100, duration_ps=30.0, seed=1, temperature=100.0)])
    assert cold.mean() - minimum == pytest.approx(expected / 12, rel=0.12)


@pytest.mark.parametrize(
    "name",
    ["n_structures", "duration_ps", "temperature", "timestep_fs", "friction_per_ps", "record_every", "trajectories"],
)
def test_values_must_be_positive(name):
    with pytest.raises(InputError, match=name):
        partial(sample_ff19sb, **({"n_structures": 2, "duration_ps": 1.0} | {name: 0}))(seed=0)


def test_too_short_a_trajectory_is_an_input_error():
    with pytest.raises(InputError, match="100 frames"):
        sample_ff19sb(101, duration_ps=1.0, seed=0)


def test_cache_is_honoured_and_settings_are_compared(tmp_path, monkeypatch):
    path = tmp_path / "cache" / "test.extxyz"
    made = cached_test_set(path, partial(sample_ff19sb, 3, duration_ps=1.0, seed=1))
    direct = sample_ff19sb(3, duration_ps=1.0, seed=1)
    assert "trajectories" not in read(path, 0).info["sampling"]  # as files of earlier versions have it
    for a, b in zip(made, direct, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        assert a.info == b.info
        np.testing.assert_allclose(a.arrays["REF_forces"], b.arrays["REF_forces"], atol=1e-8)
    assert {p.name for p in path.parent.iterdir()} == {"test.extxyz", ".test.extxyz.lock"}

    written = path.stat()
    # The same settings, said in another way.
    again = cached_test_set(path, partial(sample_ff19sb, n_structures=3, duration_ps=1, seed=1, cmap=False))
    assert digest(again) == digest(made)
    assert path.stat() == written

    other = cached_test_set(path, partial(sample_ff19sb, 3, duration_ps=1.0, seed=2))
    assert digest(other) != digest(made)
    assert digest(cached_test_set(path, partial(sample_ff19sb, 3, duration_ps=1.0, seed=2))) == digest(other)
    assert len(read(path, index=":")) == 3


def test_of_two_that_want_a_test_set_one_samples(tmp_path):
    sampled = []

    def slow(seed: int) -> list[Atoms]:
        sampled.append(seed)
        time.sleep(0.5)
        return sample_ff19sb(2, duration_ps=1.0, seed=seed)

    with ThreadPoolExecutor(2) as pool:  # locks of two open files, as those of two processes
        found = list(pool.map(cached_test_set, [tmp_path / "test.extxyz"] * 2, [partial(slow, 1)] * 2))
    assert sampled == [1]
    assert digest(found[0]) == digest(found[1])


def test_a_failed_sampling_leaves_the_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "test.extxyz"
    cached_test_set(path, partial(sample_ff19sb, 2, duration_ps=1.0, seed=1))
    content = path.read_bytes()

    def broken(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        cached_test_set(path, partial(sample_ff19sb, 2, duration_ps=1.0, seed=2))
    assert path.read_bytes() == content
    assert {p.name for p in tmp_path.iterdir()} == {"test.extxyz", ".test.extxyz.lock"}


@pytest.mark.parametrize("content", ["", "not a structure\n", None], ids=["empty", "text", "other"])
def test_files_of_others_are_never_replaced(tmp_path, content):
    path = tmp_path / "test.extxyz"
    if content is None:
        write(path, Atoms("H2", positions=[[0, 0, 0], [0, 0, 1]]))
    else:
        path.write_text(content)
    before = path.read_bytes()
    with pytest.raises(InputError, match="path"):
        cached_test_set(path, partial(sample_ff19sb, 2, duration_ps=1.0, seed=1))
    assert path.read_bytes() == before


@pytest.mark.slow
def test_hot_dynamics_visits_both_signs_of_phi():
    structures = sample_ff19sb(500, duration_ps=300.0, seed=0)
    phi = values_of({"phi": Torsion(PHI)}, structures)["phi"]
    assert 0.02 < (phi > 0).mean() < 0.6


@pytest.mark.parametrize("damage", ["cut at a frame's end", "a digit", "a label", "cut within a frame", "first lost"])
def test_a_test_set_that_was_cut_or_changed_is_refused(tmp_path, damage):
    path = tmp_path / "test.extxyz"
    sample = partial(sample_ff19sb, 3, duration_ps=1.0, seed=1)
    made = cached_test_set(path, sample)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 3 * 24
    if damage == "a digit":
        words = lines[30].split()
        lines[30] = " ".join([words[0], "1.25", *words[2:]]) + "\n"
    if damage == "a label":
        lines[25] = re.sub(r"REF_energy=\S+", "REF_energy=-1.5", lines[25])
    kept = {"cut at a frame's end": lines[:48], "cut within a frame": lines[:60], "first lost": lines[24:]}
    path.write_text("".join(kept.get(damage, lines)))
    with pytest.raises(InputError, match=r"path: .*test\.extxyz was .*(changed|damaged|lost).*made anew"):
        cached_test_set(path, sample)
    if not damage.startswith(("cut", "first")):
        return
    path.unlink()
    assert digest(cached_test_set(path, sample)) == digest(made)


def test_a_blank_line_does_not_end_a_test_set(tmp_path):
    path = tmp_path / "test.extxyz"
    sample = partial(sample_ff19sb, 3, duration_ps=1.0, seed=1)
    made = cached_test_set(path, sample)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:24], "\n", *lines[24:]]))
    assert digest(cached_test_set(path, sample)) == digest(made)
