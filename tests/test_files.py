from __future__ import annotations

import errno
import os
import resource
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.dynamics.walker_toys import Toy, cluster, walkers
from ubmd.callbacks.checkpoint import WholeFiles
from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.stopping import StoppingRules
from ubmd.dynamics.trajectory import write_trajectory
from ubmd.dynamics.walkers import run_walkers
from ubmd.errors import system_refusal
from ubmd.files import leftovers, locked, open_new, remove_leftovers, replaced, sha256_of, write_text


def test_a_file_is_whole_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.txt"
    write_text(path, "old Å")
    assert path.read_text(encoding="utf-8") == "old Å"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()

    def interrupted() -> None:
        with replaced(path) as temporary:
            temporary.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text(encoding="utf-8") == "old Å"
    assert list(path.parent.iterdir()) == [path]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_temporary_names_cannot_be_foreseen(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        with replaced(tmp_path / "file.txt") as temporary:
            assert temporary.suffix == ".txt"
            assert temporary.parent == tmp_path
            assert leftovers(tmp_path) == [temporary]
            names.add(temporary.name)
    assert len(names) == 3
    assert not any(str(os.getpid()) == part for name in names for part in name.split("."))


def test_no_link_is_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(FileExistsError):
        open_new(tmp_path / "link")
    (tmp_path / ".made.lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"), locked(tmp_path / "made"):
        pass
    assert not target.exists()


def test_what_killed_processes_leave_is_removed(tmp_path: Path) -> None:
    for name in (".a.4711.tmp.txt", "rounds/000/.round.0123456789abcdef.tmp.json", ".a.b.12.tmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    kept = [tmp_path / name for name in ("a.tmp", ".hidden", "my.12.tmp.txt", ".git.tmp")]
    for path in kept:
        path.touch()
    remove_leftovers(tmp_path)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_a_refusal_of_the_system_names_the_file(code: int, tmp_path: Path) -> None:
    """A write that fails names no file itself; the name must not be that of the temporary one."""
    path = tmp_path / "file.txt"
    with pytest.raises(OSError, match=r"file\.txt") as caught, replaced(path):
        raise OSError(code, os.strerror(code))
    refusal = system_refusal(caught.value)
    assert refusal is not None
    assert str(refusal).startswith(f"{path}: {os.strerror(code).lower()}; ")
    assert "continues" in str(refusal)
    assert not list(tmp_path.iterdir())


@contextmanager
def files_limited(size: int) -> Iterator[None]:
    """Writes beyond a size fail, as on a full disk: in the midst of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _write_checkpoint(path: Path) -> None:
    WholeFiles().save_checkpoint({"weights": torch.zeros(9999)}, path)


def _write_trajectory(path: Path) -> None:
    rules = StoppingRules(None, max_steps=30)
    write_trajectory(path, run_walkers(walkers([cluster(6)]), Toy(), Langevin(), rules, frame_interval=1))


@pytest.mark.parametrize("write", [_write_checkpoint, _write_trajectory])
def test_libraries_that_write_files_meet_a_full_disk(write: Callable[[Path], None], tmp_path: Path) -> None:
    """torch and HDF5 themselves would say neither that the disk is full nor which file they wrote."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="file") as caught, files_limited(2000):
        write(path)
    assert str(system_refusal(caught.value)).startswith(f"{path}: file too large; ")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
    write(path)
    assert path.stat().st_size > 2000


def test_a_full_disk_under_labels() -> None:
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count=1")
    with pytest.raises(sqlite3.OperationalError) as caught:
        database.execute("CREATE TABLE a (b)")
    database.close()
    said = str(system_refusal(caught.value, "runs/x"))
    assert said.startswith("runs/x: labels cannot be stored (no space left on device); free some space")


def test_the_cause_of_an_error_is_looked_for(tmp_path: Path) -> None:
    try:
        try:
            (tmp_path / "folder").mkdir()
            (tmp_path / "folder").write_text("x")
        except OSError as error:
            raise ValueError("cannot configure") from error
    except ValueError as error:
        refusal = system_refusal(error)
    assert str(tmp_path / "folder") in str(refusal)
    assert system_refusal(ValueError("else")) is None
    assert system_refusal(FileNotFoundError(errno.ENOENT, "no such file", "x")) is None


def test_checksum(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
