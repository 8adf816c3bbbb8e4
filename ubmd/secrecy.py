"""Secrets (passwords, tokens, keys) that a job needs, kept out of all that it writes and says.

What is a secret is told by its name, in a configuration or in the environment; whatever stores or prints a
configuration, a name or a message takes it through here. Only the job itself sees the values.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["PLACEHOLDER", "Formatter", "hidden", "hide", "hide_override", "is_secret", "remember", "remember_override"]

PLACEHOLDER = "***"
"""What stands for a secret; equal to itself, so that a run continues whatever its password is by then."""

_ANYWHERE = frozenset(
    {
        *("auth", "authorization", "apikey", "authtoken", "secret", "credential", "credentials"),
        *("passcode", "passphrase", "passwd", "password", "pwd"),
    }
)
_AT_THE_END = frozenset({"token", "secrets", "passwords"})
_OF_A_KEY = frozenset(
    {
        *("access", "account", "api", "auth", "client", "encryption", "licence", "license", "login", "master"),
        *("private", "secret", "service", "signing", "ssh", "storage", "subscription", "user", "wandb"),
    }
)
"""Words before ``key`` that make it one that opens something; ``energy_key`` and the like are names of data."""
_SHORTEST = 6
"""Characters of a value that is looked for in texts; shorter ones would be found everywhere."""

_URL = re.compile(r"(://)[^\s/@]*(?:@[^\s/@]*)*@")
_ASSIGNED = re.compile(
    r"""([A-Za-z_][\w.-]*)(["']?\s*[=:]\s*)((?:(?:Bearer|Basic)\s+)?(?:"[^"]*"|'[^']*'|[^\s,;&}\])"']+))"""
)
_OVERRIDE = re.compile(r"([+~]*)([\w.@/:-]+)=(.*)", re.DOTALL)

_remembered: set[str] = set()


def is_secret(key: str) -> bool:
    """Whether a part of a dotted key names a secret: ``calculator.api_key``, ``auth.user``, but not ``energy_key``."""
    return any(_names_one(part) for part in re.split(r"[.@/]", key))


def _names_one(part: str) -> bool:
    words = [w for w in re.split(r"[_\W]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part).lower()) if w]
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    return (
        not _ANYWHERE.isdisjoint(words)
        or last in _AT_THE_END
        or (last in ("key", "keys") and before in _OF_A_KEY)
        or words == ["key"]
    )


def hidden(config: Any) -> Any:
    """Plain values (mappings, lists, scalars) with :data:`PLACEHOLDER` in place of the secrets among them."""
    values = {value for value in _secrets(config) if len(value) >= _SHORTEST} | _of_environment()
    return _hidden(config, values, secret=False)


def _hidden(node: Any, values: set[str], secret: bool) -> Any:
    if isinstance(node, Mapping):
        return {key: _hidden(part, values, _inside(key, secret)) for key, part in node.items()}
    if isinstance(node, list | tuple):
        return [_hidden(part, values, secret) for part in node]
    if secret and _is_value(node):
        return PLACEHOLDER
    if isinstance(node, str):
        return _without(node, values)
    return PLACEHOLDER if isinstance(node, int | float) and str(node) in values else node


def hide(text: str) -> str:
    """A text without the secrets of the configurations of this process, those of the environment, those in addresses,
    and those that it assigns (``password=...``).
    """
    assigned = _ASSIGNED.sub(lambda found: f"{found[1]}{found[2]}{_assigned(found[1], found[3])}", text)
    return _without(assigned, _remembered | _of_environment())


def hide_override(text: str) -> str:
    """The same for one override, whose value may be anything."""
    found = _OVERRIDE.fullmatch(text)
    return f"{found[1]}{found[2]}={_assigned(found[2], hide(found[3]))}" if found else hide(text)


def remember(config: Any) -> None:
    """Takes note of the secrets in plain values, so that no message of this process has them."""
    _remembered.update(value for value in _secrets(config) if len(value) >= _SHORTEST)


def remember_override(text: str) -> None:
    """The same for one override as it is written."""
    found = _OVERRIDE.fullmatch(text)
    if found:
        value = found[3].strip("\"'")
        remember({found[2]: value})
        for key, _, assigned in _ASSIGNED.findall(found[3]):
            remember({key: assigned.strip("\"'")})


class Formatter(logging.Formatter):
    """Lines of a log, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return hide(super().format(record))


def _secrets(node: Any, secret: bool = False) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, part in node.items():
            yield from _secrets(part, _inside(key, secret))
    elif isinstance(node, list | tuple):
        for part in node:
            yield from _secrets(part, secret)
    elif secret and _is_value(node):
        yield str(node)


def _inside(key: object, secret: bool) -> bool:
    """Whether what a key of a mapping holds is a secret; a class that takes some (``_target_``) is none."""
    return not str(key).startswith("_") and (secret or is_secret(str(key)))


def _is_value(node: Any) -> bool:
    """Whether there is something to hide; a reference to another key, or to the environment, says nothing."""
    return not (node is None or isinstance(node, bool) or node in ("", "???", PLACEHOLDER)) and not (
        isinstance(node, str) and node.startswith("${") and node.endswith("}")
    )


def _assigned(key: str, value: str) -> str:
    return PLACEHOLDER if is_secret(key) and _is_value(value) else value


def _of_environment() -> set[str]:
    """Values of variables that are named as secrets are; those that are paths only say where one is."""
    return {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST
        and (is_secret(name) or name.upper().endswith("_KEY"))
        and not os.path.isabs(value)
        and value.lower() not in ("true", "false")
    }


def _without(text: str, values: set[str] | Sequence[str]) -> str:
    for value in sorted(values, key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(value, PLACEHOLDER)
    return _URL.sub(rf"\1{PLACEHOLDER}@", text)
