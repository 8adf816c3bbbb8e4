"""Small damages to bytes, text and nested values, drawn from a random generator."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

Random = np.random.Generator

TOKENS = (
    *b"nan inf -inf 0 -1 1e400 1e-320 99999999999999999999 2147483648 -0.0 0x10".split(),
    *b"null None True T F R S:1 D X Xx H H- REF_energy= energy=one Properties=species:S:1:pos:R:3".split(),
    *b"\" ' { } [ ] = : , # ! % \\ / .. ~ ${a}".split(),
    *(b"", b" ", b"\t", b"\n", b"\r\n", b"\n\n", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", "Å²".encode()),
    *(
        "\u2028".encode(),
        b"&a *a",
        b'pbc="T F X"',
        b'Lattice="0 0 0 0 0 0 0 0 0"',
        b"!!python/name:os.system ",
        b"- - -",
    ),
)


def damaged(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """A copy of a file's content with a damage or a few; ``others`` lend pieces."""
    for _ in range(random.geometric(0.6)):
        damage: Callable[..., bytes] = DAMAGES[random.integers(len(DAMAGES))]
        data = damage(data, random, others)
    return data


def _flip(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(int(random.integers(1, 4)) if data else 0):
        out[random.integers(len(out))] ^= 1 << random.integers(8)
    return bytes(out)


def _digit(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    digits = [i for i, byte in enumerate(data) if 48 <= byte < 58]
    if not digits:
        return data
    place = digits[random.integers(len(digits))]
    return data[:place] + bytes([48 + random.integers(10)]) + data[place + 1 :]


def _cut(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    return data[: random.integers(len(data) + 1)]


def _remove(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    start, length = random.integers(len(data) + 1), random.integers(1, 40)
    return data[:start] + data[start + length :]


def _repeat(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    start, length = random.integers(len(data) + 1), random.integers(1, 60)
    return data[: start + length] + data[start:]


def _insert(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    place = random.integers(len(data) + 1)
    return data[:place] + TOKENS[random.integers(len(TOKENS))] + data[place:]


def _word(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Another word in place of one."""
    words = list(re.finditer(rb"[^\s=:]+", data))
    if not words:
        return data
    start, end = words[random.integers(len(words))].span()
    return data[:start] + TOKENS[random.integers(len(TOKENS))] + data[end:]


def _line(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """A line dropped, doubled, or at another place."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    line = lines.pop(random.integers(len(lines)))
    for _ in range(random.integers(3)):
        lines.insert(random.integers(len(lines) + 1), line)
    return b"".join(lines)


def _splice(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    other = others[random.integers(len(others))]
    return data[: random.integers(len(data) + 1)] + other[random.integers(len(other) + 1) :]


def _noise(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    start, length = random.integers(len(data) + 1), random.integers(1, 20)
    return data[:start] + random.bytes(length) + data[start + length :]


DAMAGES = (_flip, _digit, _digit, _cut, _remove, _repeat, _insert, _word, _word, _line, _line, _splice, _noise)

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 10**9, 10**30, 0.5, -0.5, float("nan"), float("inf"), "", "x", "H", "nan", b"x"),
    *([], [1], [None], ["H", "H"], {}, {"a": 1}, {"_target_": "ubmd.models.gmnn.GMNN"}),
    *(torch.zeros(0), torch.ones(2, 3)),
)


def changed(value: Any, random: Random) -> Any:
    """A copy of nested mappings, lists, tensors and arrays with a place or a few changed."""
    value = copy.deepcopy(value)
    for _ in range(random.geometric(0.7)):
        places = list(_places(value))
        if not places:
            break
        owner, key = places[random.integers(len(places))]
        action = random.integers(4)
        if action == 0 and isinstance(owner, dict):
            del owner[key]
        elif action == 1 and isinstance(owner, dict):
            owner[f"{key}_"] = owner.pop(key)
        elif isinstance(owner[key], torch.Tensor | np.ndarray):
            owner[key] = _reshaped(owner[key], random)
        else:
            owner[key] = copy.deepcopy(VALUES[random.integers(len(VALUES))])
    return value


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield value, key
        yield from _places(child)


def _reshaped(values: Any, random: Random) -> Any:
    """An array with another shape, type or number."""
    choice = random.integers(3 if values.dtype == object else 7)
    if choice == 0:
        return values[:-1] if values.ndim else values.reshape(1)
    if choice == 1:
        return values.reshape(-1)
    if choice == 2:
        return values[None]
    if choice == 3:
        return values.to(torch.int64) if isinstance(values, torch.Tensor) else values.astype(np.int64)
    if choice == 4:
        return values.double() if isinstance(values, torch.Tensor) else values.astype(np.float16)
    if choice == 5:
        return copy.deepcopy(VALUES[random.integers(len(VALUES))])
    flat = values.reshape(-1)
    if len(flat):
        number = (float("nan"), float("inf"), -1, 0, 1e30, 300)[random.integers(6)]
        try:
            flat[random.integers(len(flat))] = number
        except (ValueError, OverflowError, RuntimeError, TypeError):
            flat[random.integers(len(flat))] = 1
    return values
