"""Structure files of every other format, read by ASE and counted."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from pathlib import Path

import ase.io
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype, get_compression

from ubmd.errors import InputError

__all__ = ["contents", "format_of", "read_by_ase"]

_MARKS = {
    "aims-output": rb"^ *Total atomic forces",
    "cif": rb"^\s*_atom_site_(?:fract|cartn)_x\b",
    "gaussian-out": rb"^ *(?:Input|Standard) orientation:",
    "gen": rb"^\s*[0-9]+\s+[CSFH]\s*$",
    "lammps-dump-text": rb"^ITEM: TIMESTEP",
    "proteindatabank": rb"^MODEL\b",
    "sdf": rb"^M  END",
    "vasp-out": rb"TOTAL-FORCE \(eV/Angst\)",
    "vasp-xdatcar": rb"^Direct configuration",
    "vasp-xml": rb"<calculation>",
    "xsf": rb"^\s*PRIMCOORD",
}
"""What a file of a format has once for each structure. ASE ends reading some of them early, without a word."""


def format_of(path: Path) -> str:
    """ASE's name of a file's format; ``extxyz`` by its ending alone.

    ASE's patterns, e.g. for names with CONFIG or POSCAR in them, come before endings.
    """
    if Path(get_compression(path.name)[0]).suffix.lower() in (".xyz", ".extxyz"):
        return "extxyz"
    try:
        return filetype(str(path.absolute()))
    except UnknownFileTypeError as error:
        raise InputError(
            f"structure file {path} cannot be read: its format is none that ASE knows; name it .extxyz, .cif, ..."
        ) from error


def contents(path: Path) -> bytes:
    """All bytes of a file, which may be compressed.

    Raises:
        InputError: if it cannot be opened, or its compressed data are damaged or followed by something else.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            return gzip.decompress(data)
        for magic, opened in ((b"BZh", bz2.BZ2Decompressor), (b"\xfd7zXZ\x00", lzma.LZMADecompressor)):
            out = b""
            while data.startswith(magic):
                decompressor = opened()
                out += decompressor.decompress(data)
                if not decompressor.eof:
                    raise EOFError("it ends early")
                data = decompressor.unused_data
            if out and data:
                raise OSError("something follows the compressed data")
            if out:
                return out
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"structure file {path} cannot be read ({reason})") from error
    return data


def read_by_ase(path: Path, kind: str) -> list[Atoms]:
    """All structures of a file in a format of ASE's.

    Raises:
        InputError: if ASE cannot read it, or reads fewer structures than there are.
    """
    data = contents(path)
    try:
        # an absolute path: ASE takes names that begin with -, postgres: or mysql: for something else than files
        frames = ase.io.read(
            str(path.absolute()), index=slice(None), format=kind, parallel=False, do_not_split_by_at_sign=True
        )
    except Exception as error:  # ASE's readers raise anything from KeyError to StopIteration
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"structure file {path} cannot be read as {kind} ({reason})") from error
    found = frames if isinstance(frames, list) else [frames]
    marks = len(re.findall(_MARKS[kind], data, re.MULTILINE)) if kind in _MARKS else 0
    if marks > len(found):
        raise InputError(
            f"structure file {path} cannot be read whole: it seems to hold {marks} structures, of which ASE's reader "
            f"of {kind} finds {len(found)}; convert it to extended XYZ"
        )
    return found
