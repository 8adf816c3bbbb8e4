"""The text of ``ubmd COMMAND --help KEY``: what a key or a group of the configuration is."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ubmd import config
from ubmd.cli.comments import Comments, comments_of, parameter_doc
from ubmd.cli.explain import file_of, loaded, offered, unknown_key
from ubmd.errors import InputError
from ubmd.imports import locate, options_of
from ubmd.schema import KEYS, described, hints_of, shown
from ubmd.secrecy import hidden

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from ubmd.cli.command import Command

__all__ = ["key_help"]

_WIDTH = 100
_NOTHING = object()


def key_help(hydra: Hydra, command: Command, overrides: Sequence[Override], names: Sequence[str]) -> list[str]:
    """What keys and groups are, as the overrides leave them; a text for each.

    Args:
        hydra: with the configurations.
        command: whose keys they are.
        overrides: what is chosen.
        names: of keys, ``bias.tau``, and groups, ``uncertainty/features``.

    Raises:
        InputError: one of them is neither, or the overrides do not fit.
    """
    composed = _Composed(hydra, command, overrides)
    return ["\n".join(_explained(composed, name.strip("+~='\"").rstrip("./"))) for name in names]


@dataclass(frozen=True)
class _File:
    """One of the files that a configuration is composed of."""

    name: str
    package: str
    comments: Comments

    def find(self, key: str) -> str | None:
        """What the file says about a key of the whole configuration; None if it does not set it."""
        inner = key.removeprefix(f"{self.package}.") if self.package else key
        return self.comments.keys.get(inner) if inner != key or not self.package else None


class _Composed:
    """A configuration, and the files that it comes from."""

    def __init__(self, hydra: Hydra, command: Command, overrides: Sequence[Override]):
        self.hydra, self.command, self.overrides = hydra, command, overrides
        self.lines = [str(override.input_line) for override in overrides]
        self.cfg = loaded(hydra, command, overrides)
        self.tree: Any = hidden(OmegaConf.to_container(self.cfg, resolve=False))
        self.base = config.base_keys(command.config_name)
        self.choices: Mapping[str, Any] = self.cfg.hydra.runtime.choices

    @cached_property
    def files(self) -> list[_File]:
        """In the order in which they are merged."""
        loader = self.hydra.config_loader
        entries = loader.compute_defaults_list(self.command.config_name, list(self.lines), RunMode.MULTIRUN).defaults
        return [
            _File(str(entry.config_path), entry.package or "", self.comments(str(entry.config_path)))
            for entry in entries
            if entry.config_path is not None
        ]

    def comments(self, name: str) -> Comments:
        """Those of the file of a group and option, or of a command; none if it is not a file."""
        file = file_of(self.hydra, name)
        return Comments() if file is None else comments_of(file.read_text(encoding="utf-8"))

    def value(self, key: str) -> Any:
        """The value of a dotted key, with its references; ``_NOTHING`` if there is none."""
        node = self.tree
        for part in key.split("."):
            if isinstance(node, list) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            elif isinstance(node, dict) and part in node:
                node = node[part]
            else:
                return _NOTHING
        return node

    def resolved(self, key: str, value: Any) -> str:
        """A value as one writes it, and what a reference in it stands for, as far as that is known before a run."""
        text = shown(value)
        if "${" not in text:
            return text
        try:
            found = OmegaConf.select(self.cfg, key)
        except (OmegaConfBaseException, InputError, ValueError):
            return text
        return f"{text}, which is {shown(OmegaConf.to_container(found) if OmegaConf.is_config(found) else found)}"

    def said(self, key: str) -> list[str]:
        """What the files say about a key, that which has it first at first."""
        return list(dict.fromkeys(found for file in self.files if (found := file.find(key))))

    def origin(self, key: str) -> str:
        """What set the value of a key."""
        if any(override.key_or_group == key for override in self.overrides):
            return "this command line"
        names = [file.name for file in self.files if file.find(key) is not None]
        if not names:
            return ""
        group, _, option = names[-1].rpartition("/")
        return f"{group}={option}" if group else f"{option}.yaml"

    def target(self, above: str) -> tuple[str, Any]:
        """The name and the class or function that the part of a key is made by; empty if it is no part."""
        name = self.value(f"{above}._target_") if above else _NOTHING
        if not isinstance(name, str) or "${" in name or name == "???":
            return "", None
        return name, locate(name, f"{above}._target_")


def _explained(composed: _Composed, name: str) -> list[str]:
    key, group = name.replace("/", "."), name.replace(".", "/")
    options = offered(composed.hydra, composed.command, group) if _is_group(composed, group) else []
    value = composed.value(key)
    out = _options(composed, group, options) if options else []
    if isinstance(value, dict) and value:
        out += ["", *_keys(composed, key, value)] if out else _keys(composed, key, value)
    elif not options or (value is not _NOTHING and value not in (None, {})):
        out += ["", *_one(composed, key, value)] if out else _one(composed, key, value)
    return out


def _is_group(composed: _Composed, group: str) -> bool:
    inner = "/" in group and not group.startswith("hydra/")
    return group in composed.choices if inner else group.split("/")[0] in {*composed.base, "hydra"}


def _options(composed: _Composed, group: str, options: Sequence[str]) -> list[str]:
    """The options of a group, each with the first sentence of its file."""
    out = [f"{group}=OPTION, one of (* is chosen):"]
    chosen = str(composed.choices.get(group))
    marked = {option: f"{option}*" if option == chosen else option for option in options}
    wide = max(map(len, marked.values()))
    for option, text in marked.items():
        out += _wrapped(f"  {text:<{wide}}  ", composed.comments(f"{group}/{option}").title)
    loader = composed.hydra.config_loader
    for inner in composed.choices:
        if inner.startswith(f"{group}/") and "@" not in inner:
            out += _wrapped("  ", f"with {inner}={', '.join(loader.get_group_options(inner))}")
    return out


def _keys(composed: _Composed, key: str, value: Mapping[str, Any]) -> list[str]:
    """A part or mapping: what it is and the keys in it, each with a line."""
    name, target = composed.target(key)
    out = [f"{key} is made by {name}"] if name else [f"{key} holds"]
    outer = composed.target(key.rpartition(".")[0])[1]
    for said in composed.said(key) or ([parameter_doc(outer, key.rpartition(".")[2])] if outer else []):
        out += _wrapped("  ", said)
    rows: dict[str, str] = {}
    for inner, each in value.items():
        if not str(inner).startswith("_"):
            path = f"{key}.{inner}"
            text = path if isinstance(each, dict) and each else f"{path}={shown(each, 40)}"
            rows[text] = _in_a_line(
                next(iter(composed.said(path)), ""), parameter_doc(target, str(inner)) if target else ""
            )
    wide = min(max(map(len, rows), default=0), 44)
    for text, said in rows.items():
        out += _wrapped(f"  {text:<{wide}}  ", said, indent=wide + 4)
    # what makes a part that is completed later gives the rest
    given = {"seed"} if value.get("_partial_") else set()
    options = (options_of(target) if target else None) or {}
    further = [o for o, p in options.items() if o not in {*value, *given} and p.default is not inspect.Parameter.empty]
    if further:
        out += _wrapped("  ", f"further options, +{key}.NAME=VALUE: {', '.join(further)}")
    return out


def _in_a_line(comment: str, doc: str) -> str:
    """The comment on a key, or the docstring's words where it says no more than a unit."""
    return shown(doc if doc and " " not in comment else comment, 3 * _WIDTH)


def _one(composed: _Composed, key: str, value: Any) -> list[str]:
    """A key with a single value: comment, type, where the value comes from, and what the class says."""
    above, _, inner = key.rpartition(".")
    name, target = composed.target(above)
    options = options_of(target) if target else None
    if value is _NOTHING and inner not in (options or ()):
        none = f"there are no options for {key} yet; put them into a folder {key} of your own configurations"
        raise InputError(none if key in composed.base else unknown_key(composed.tree, key, composed.command) or none)
    if value == "???":
        out = [f"{key} must be given, {key}=VALUE"]
    elif value is not _NOTHING:
        out = [f"{key}={composed.resolved(key, value)}"]
    else:
        assert options is not None
        default = options[inner].default
        usual = "no default" if default is inspect.Parameter.empty else f"{_default(default)} unless it is given"
        out = [f"{key} is not set here ({usual}); give it as +{key}=VALUE"]
    for said in composed.said(key):
        out += _wrapped("  ", said)
    hint = hints_of(target).get(inner) if target else KEYS.get(key)
    if hint is not None and (words := described(hint)):
        out += _wrapped("  takes   ", words)
    if origin := composed.origin(key):
        out += _wrapped("  set by  ", origin)
    if name:
        doc = parameter_doc(target, inner)
        out += _wrapped("  option  ", f"of {name}{': ' if doc else ''}{doc}")
    return out


def _default(value: Any) -> str:
    """A default as one writes it in an override, if one can."""
    return shown(value) if value is None or isinstance(value, bool | int | float | str | list | tuple) else repr(value)


def _wrapped(begin: str, text: str, *, indent: int | None = None) -> list[str]:
    """Lines of a text behind some words, by default indented as it begins."""
    further = " " * (len(begin) if indent is None else indent)
    lines = textwrap.wrap(text, _WIDTH, initial_indent=begin, subsequent_indent=further, break_on_hyphens=False)
    return lines or [begin.rstrip()]
