"""Checks and helpers for composed configurations; importing this module registers the resolvers they use.

The schema of a configuration is the signature of the class or function that ``_target_`` names: there is no
second one.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ubmd import paths
from ubmd.errors import InputError
from ubmd.imports import extra_with, first_line, locate, options_of
from ubmd.schema import KEYS, OPTIONAL, hints_of, mismatch, shown
from ubmd.secrecy import hide, is_secret

_INSTANTIATE_KEYS: dict[str, Any] = {
    "_target_": str,
    "_partial_": bool,
    "_args_": list,
    "_recursive_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
}
_OF_VALUES = (TypeError, ValueError, ArithmeticError, LookupError, OSError, MemoryError)
"""What constructors raise for values that make no sense."""
_LONGEST_NAME = 160
_MOST_BYTES = 255
"""Of a file name, with any file system."""


def suggestion(word: str, valid: Iterable[str], *, prefix: str = "") -> str:
    """``did you mean a or b? (valid: ...)``, or ``valid: ...``, for a word that is not among the valid ones."""
    options = sorted({option for option in valid if not option.startswith("_")})
    near = get_close_matches(word, options, n=2, cutoff=0.6) or [o for o in options if o.startswith(word)][:2]
    listed = f"valid: {', '.join(options) or 'none'}"
    return f"did you mean {' or '.join(prefix + option for option in near)}? ({listed})" if near else listed


def validate(cfg: DictConfig, config_name: str | None = None) -> None:
    """Compare every ``_target_`` node with the signature it names, without resolving or building anything.

    With `config_name` ("learn", ...), the keys outside such nodes are compared with that base configuration.
    Raises InputError for the first unknown, missing or unimportable thing.
    """
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    tree.pop("hydra", None)
    if config_name is not None:
        _check_against_base(tree, config_name)
    _check_node(tree, "")


def _check_node(node: Any, where: str) -> None:
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_target(node, where)
        for key, child in node.items():
            _check_node(child, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            _check_node(child, f"{where}[{index}]")
    elif node == "???":
        raise InputError(f"{where} is missing: give it as {where}=VALUE{_other_options(where)}")


def _other_options(where: str) -> str:
    """That another option of a key's group is a remedy, too; nothing for a key without a group."""
    group = where.split(".", 1)[0]
    options = sorted(file.stem for file in (paths.config_dir() / group).glob("*.yaml"))
    return f", or choose {group}=OPTION ({', '.join(options)})" if len(options) > 1 else ""


def check_values(tree: Mapping[Any, Any], config_name: str) -> None:
    """Compare the values of a resolved configuration with the types that its keys take.

    Raises InputError for the first that does not fit.
    """
    base = base_keys(config_name)
    if isinstance(tree.get("name"), str) and not tree["name"].strip():
        raise InputError("name is empty; it is the folder of the runs: give name=WORD, or leave it at its default")
    for key, hint in KEYS.items():
        *outer, name = key.split(".")
        holder = tree[outer[0]] if outer and outer[0] in base else tree
        if key.split(".", 1)[0] not in base or (name not in holder and key in OPTIONAL):
            continue
        if name not in holder:
            raise InputError(f"{key} is missing; leave it at its default or give {key}=VALUE")
        if wrong := mismatch(holder[name], hint, key):
            raise InputError(wrong)
    if wrong := _wrong_value(tree, ""):
        raise InputError(wrong)


def _wrong_value(node: Any, where: str) -> str | None:
    """What is wrong with the options of a part, or of the parts in it."""
    hints: dict[str, Any] = {}
    ours = True
    if isinstance(node, Mapping) and "_target_" in node:
        ours = node["_target_"].startswith("ubmd.")
        hints = hints_of(locate(node["_target_"], f"{where}._target_")) | _INSTANTIATE_KEYS
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        inner = f"{where}[{key}]" if isinstance(node, list) else f"{where}.{key}" if where else str(key)
        wrong = mismatch(value, hints[key], inner, ours=ours) if key in hints else None
        if wrong := wrong or _wrong_value(value, inner):
            return wrong
    return None


def _check_target(node: Mapping[Any, Any], where: str) -> None:
    target = node["_target_"]
    key = f"{where}._target_" if where else "_target_"
    if target == "???":
        raise InputError(
            f"{key} is missing: give the dotted name of a class or function, {key}=package.module.Name"
            f"{_other_options(where)}"
        )
    if not isinstance(target, str):
        raise InputError(f"{key}={shown(target)} must be the dotted name of a class or function")
    if "${" in target:
        return
    found = locate(target, key)
    if not callable(found):
        raise InputError(f"{key}={target} is neither a class nor a function")
    options = options_of(found)
    if options is None:
        return
    label = target.rsplit(".", 1)[-1]
    prefix = f"{where}." if where else ""
    given = [str(key) for key in node if key not in _INSTANTIATE_KEYS]
    for key in given:
        if key not in options:
            hint = suggestion(key, options, prefix=prefix)
            raise InputError(f"{prefix}{key} is not an option of {label}; {hint}")
    positional = len(node.get("_args_") or [])
    required = [name for name, p in options.items() if p.default is inspect.Parameter.empty][positional:]
    lacking = [name for name in required if name not in given]
    if lacking and not node.get("_partial_"):
        keys = ", ".join(prefix + name for name in lacking)
        raise InputError(f"{label} needs {keys}: give it as {prefix}{lacking[0]}=VALUE")


def build(cfg: DictConfig, key: str, *, complete: Callable[..., Any] | None = None, **given: Any) -> Any:
    """What a part of the configuration describes, e.g. ``build(cfg, "calibration.atomic")``.

    What is completed later (``_partial_``) is completed by `given`, if any; else that replaces options. `complete` is
    called with what makes the part, and `given`. Lists and mappings reach the classes as plain ones.

    Raises InputError for a part that is absent and for a value that its class refuses, with the key as users type it.
    """
    node = OmegaConf.select(cfg, key)
    if node is None:
        raise InputError(f"{key} is not chosen; leave it at its default or give {key}=OPTION")
    try:
        if complete is not None:
            return complete(instantiate(node, _partial_=True, _convert_="all"), **given)
        if isinstance(node, DictConfig) and not node.get("_partial_"):
            return instantiate(node, _convert_="all", **given)
        made = instantiate(node, _convert_="all")
        return made(**given) if given else made
    except (InstantiationException, *_OF_VALUES, RuntimeError) as error:
        cause: BaseException | None = error
        while isinstance(cause, InstantiationException):
            key = _full_key(cause) or key
            cause = cause.__cause__
        if isinstance(cause, InputError):
            raise InputError(_with_key(str(cause), cfg, key)) from error
        if isinstance(cause, ImportError):
            raise InputError(
                f"{key} needs {cause.name}, which cannot be imported{extra_with(cause)} ({cause})"
            ) from error
        if isinstance(cause, _OF_VALUES) or "memory" in str(cause):
            raise InputError(f"{key} holds a value of the wrong kind ({shown(str(cause), 200)})") from error
        raise


def _full_key(error: InstantiationException) -> str | None:
    """The key of the part that could not be made, as Hydra gives it at the end of its message."""
    found = re.search(r"\nfull_key: (\S+)\s*\Z", str(error))
    return found.group(1) if found else None


def _with_key(sentence: str, cfg: DictConfig, key: str) -> str:
    """A sentence about a part of the configuration that names the key: classes know their own options alone."""
    first = re.match(r"\w*", sentence)
    word = first.group() if first else ""
    if word in cfg or re.search(rf"\b{re.escape(key.split('.', 1)[0])}[.=:]", sentence):
        return sentence
    node = OmegaConf.select(cfg, key)
    options = options_of(locate(str(node["_target_"]))) if isinstance(node, DictConfig) and "_target_" in node else None
    return f"{key}.{sentence}" if word in (options or ()) else f"{key}: {sentence}"


def base_keys(config_name: str) -> dict[str, Any]:
    """Top-level keys of a primary configuration: its own with their contents, its groups with None."""
    raw = OmegaConf.to_container(OmegaConf.load(paths.config_dir() / f"{config_name}.yaml"), resolve=False)
    assert isinstance(raw, dict)
    keys: dict[str, Any] = {str(key): value for key, value in raw.items() if key != "defaults"}
    for entry in raw.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_" and "@" not in entry and "/" not in entry:
            keys = base_keys(entry) | keys
        elif isinstance(entry, dict):
            group = re.sub(r"^(override |optional )*", "", str(next(iter(entry)))).lstrip("/")
            package = group.split("@", 1)[-1].replace("/", ".")
            keys.setdefault(package.split(".", 1)[0], None)
    return keys


def _check_against_base(tree: Mapping[Any, Any], config_name: str) -> None:
    base = base_keys(config_name)
    for key in tree:
        if key not in base:
            hint = suggestion(str(key), base.keys() - {"hydra"})
            raise InputError(f"{key} is not a key of `ubmd {config_name}`; {hint}")
    _check_plain(tree, base, "")


def _check_plain(node: Mapping[Any, Any], base: Mapping[Any, Any], prefix: str) -> None:
    """Mappings that the base writes out itself, without ``_target_``, accept the keys written there."""
    for name, known in base.items():
        found = node.get(name)
        if not isinstance(known, Mapping) or not known or "_target_" in known or not isinstance(found, Mapping):
            continue
        for key in found:
            if key not in known:
                hint = suggestion(str(key), map(str, known), prefix=f"{prefix}{name}.")
                raise InputError(f"{prefix}{name}.{key} is not a key of {prefix}{name}; {hint}")
        _check_plain(found, known, f"{prefix}{name}.")


def set_threads(threads: int | str) -> None:
    """Limit torch to a number of CPU threads; "auto" leaves its choice alone."""
    if threads == "auto":
        return
    if not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise InputError(f"threads={threads} must be a whole number between 1 and 1024, or auto")
    import torch

    torch.set_num_threads(threads)


def plain(cfg: DictConfig | ListConfig) -> Any:
    """The configuration as plain dicts, lists and values with all references filled in."""
    with readable():
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@contextmanager
def readable() -> Iterator[None]:
    """Turns what OmegaConf finds wrong with values and references into one sentence."""
    try:
        yield
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise InputError(f"{key}{first_line(error)}") from error


def run_name(overrides: Iterable[str], exclude: Iterable[str] = ()) -> str:
    """Overrides as the name of a folder: ``bias.tau-0.5+seed-1``, or ``default`` without any.

    Order and spelling of the overrides do not matter (``0.50`` is ``0.5``); secrets, and keys that match a pattern
    in `exclude`, are left out. Only characters that need no quoting in a shell, a path or an override are used
    (so no ``=`` and no comma); a name that loses something by that, or is very long, ends in a digest.
    """
    patterns = list(exclude)
    items: dict[str, str] = {}
    # as they were written: references in them are for another place
    lines = OmegaConf.to_container(overrides) if isinstance(overrides, ListConfig) else list(overrides)
    for override in OverridesParser.create().parse_overrides(lines):  # pyright: ignore[reportArgumentType]
        key = override.key_or_group.replace("/", ".") + (f"@{override.package}" if override.package else "")
        if override.is_hydra_override() or is_secret(key) or any(fnmatchcase(key, pattern) for pattern in patterns):
            continue
        value = "" if override.is_delete() else f"-{hide(override.get_value_element_as_str())}"
        items[key] = f"{'no-' if override.is_delete() else ''}{key}{value}"
    text = "+".join(items[key] for key in sorted(items))
    if not text:
        return "default"
    name = re.sub(r"[^\w.+@-]+", "-", text)
    if name != text or len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME].strip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    if len(name.encode()) > _MOST_BYTES:  # letters of other scripts take several
        cut = name.encode()[: _MOST_BYTES - 9].decode(errors="ignore").strip("-")
        name = f"{cut}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def run_tags(name: str) -> list[str]:
    """The overrides in the name of a run's folder one by one, as tags; wandb takes up to 64 characters."""
    return [part[:64] for part in name.split("+")]


def wandb_offline() -> bool:
    """Whether wandb stays offline: it does unless ``WANDB_MODE`` names another mode (Lightning sets ``dryrun``) or an
    agent of one of wandb's own sweeps runs the job.
    """
    usual = "online" if os.environ.get("WANDB_SWEEP_ID") else "offline"
    return (os.environ.get("WANDB_MODE") or usual) in ("offline", "dryrun")


def folder_path(text: str | None, default: str) -> str:
    """The absolute path of a folder that a user names; an empty name is `default` in the working directory."""
    return os.path.abspath(os.path.expanduser(str(text or "").strip() or default))


OmegaConf.register_new_resolver("run_name", lambda overrides, exclude=(): run_name(overrides, exclude), replace=True)
OmegaConf.register_new_resolver("run_tags", run_tags, replace=True)
OmegaConf.register_new_resolver("wandb_offline", wandb_offline, replace=True)
OmegaConf.register_new_resolver("folder", folder_path, replace=True)
OmegaConf.register_new_resolver("cwd", os.getcwd, replace=True)  # unlike ${hydra:runtime.cwd}, before a job too
