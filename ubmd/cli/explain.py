"""Turn Hydra's composition errors into one sentence that names the key and the nearest valid one."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ubmd import config, paths
from ubmd.errors import InputError
from ubmd.schema import KEYS, OPTIONAL

if TYPE_CHECKING:
    from ubmd.cli.command import Command


log = logging.getLogger(__name__)


def offered(hydra: Hydra, command: Command, group: str) -> list[str]:
    """The options of a group that a command can take: all, but those that set what the command does not have."""
    options = hydra.config_loader.get_group_options(group)
    base = config.base_keys(command.config_name).keys()
    return [name for name in options if _sets(hydra, group, name) <= base]


def file_of(hydra: Hydra, name: str) -> Path | None:
    """The file of a configuration, ``bias/uncertainty`` or ``learn``; None if there is none."""
    files = (Path(s.path) / f"{name}.yaml" for s in hydra.config_loader.get_sources() if s.scheme() == "file")
    return next((file for file in files if file.is_file()), None)


def _sets(hydra: Hydra, group: str, name: str) -> set[str]:
    """Top-level keys and groups that an option with a global package sets, with those of its bases."""
    file = file_of(hydra, f"{group}/{name}")
    if file is None or not file.read_text(encoding="utf-8").startswith("# @package _global_"):
        return set()
    raw = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    if not isinstance(raw, dict):
        return set()
    params = ((raw.get("hydra") or {}).get("sweeper") or {}).get("params") or {}
    found = {str(key).split(".")[0] for key in (*raw, *params)} - {"defaults"}
    for entry in raw.get("defaults", []):
        if isinstance(entry, dict):
            found |= {str(key).removeprefix("override /").split("/")[0] for key in entry}
        elif entry != "_self_":
            found |= _sets(hydra, group, str(entry))
    return found


def check_groups(hydra: Hydra, command: Command, overrides: Sequence[Override]) -> None:
    """InputError for ``group=option`` with an option that the group does not have."""
    lines = [str(override.input_line) for override in overrides]
    base = config.base_keys(command.config_name)
    for override in overrides:
        group = override.key_or_group
        options = hydra.config_loader.get_group_options(group, config_name=command.config_name, overrides=lines)
        if not options and group in base and base[group] is None and group not in {*KEYS, "hydra"}:
            raise InputError(f"there are no options for {group}; leave {override.input_line} out")
        value = override.value()
        known = group.split("/")[0] in {*base, "hydra"}
        for name in value if isinstance(value, list) else [value]:
            option = str(name).removesuffix(".yaml")
            lacking = sorted(_sets(hydra, group, option) - base.keys())
            if lacking:
                hint = config.suggestion(lacking[0], base.keys() - {"hydra"})
                raise InputError(
                    f"{lacking[0]} is not a key of `ubmd {command.name}`; {hint}; {group}={option} sets it"
                )
            if not options or not known or override.is_delete() or isinstance(name, dict) or "/" in option:
                continue
            if name is None and group in KEYS and group not in OPTIONAL:
                raise InputError(f"{group}=null is not possible; choose one of {', '.join(sorted(options))}")
            if name is None:
                raise InputError(f"{group}=null is not possible; write ~{group} for none of {group}")
            own, taken = paths.own_config_dir(), file_of(hydra, f"{group}/{option}")
            if own is not None and (mine := own / group / f"{option}.yaml").exists() and mine != taken:
                _tell_unused(f"{group}={option}", mine)
            if option not in options:
                hint = config.suggestion(option, options)
                if group == "hydra/launcher":
                    hint += "; joblib and submitit come with pip install 'ubmd[sweep]'"
                raise InputError(f"{group}={name} is not one of the options of {group}; {hint}")


@cache
def _tell_unused(choice: str, file: Path) -> None:
    """Says, once, that another configuration has the name of one in the working directory."""
    log.warning("%s is ubmd's own, or that of --config-dir, and not %s; give that another name", choice, file)


def loaded(hydra: Hydra, command: Command, overrides: Sequence[Override]) -> DictConfig:
    """The configuration of a command as overrides leave it, those of a sweep among them; InputError if Hydra cannot."""
    lines = [str(override.input_line) for override in overrides]
    try:
        check_groups(hydra, command, overrides)
        load = hydra.config_loader.load_configuration
        return load(command.config_name, lines, RunMode.MULTIRUN, validate_sweep_overrides=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(hydra, command, overrides, error)) from error
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise InputError(explain_value(hydra, command, overrides, error)) from error


def explain(hydra: Hydra, command: Command, overrides: Sequence[Override], error: Exception) -> str:
    """One sentence for a composition error."""
    message = str(error)
    if "Could not find 'hydra/sweeper/optuna'" in message:
        return "hydra/sweeper=optuna is not installed; pip install 'ubmd[optuna]'"
    unset = re.search(r"You must specify '([^']+)'", message)
    if unset:
        group = unset.group(1)
        options = hydra.config_loader.get_group_options(group)
        return f"{group} is not chosen: give it as {group}=OPTION (one of {', '.join(options) or 'none'})"
    groups = [o for o in overrides if hydra.config_loader.get_group_options(o.key_or_group)]
    base = config.base_keys(command.config_name).keys() - {"hydra"}
    for override in groups:
        name = override.key_or_group
        if name not in base and f"Could not override '{name}'" in message:
            outer, _, inner = name.rpartition("/")
            if outer in base:
                return f"{name} is not possible, as the {outer} that is chosen has no {inner} to choose"
            return f"{name} is not a group of `ubmd {command.name}`; {config.suggestion(name, base)}"
    if "is not an int" in message:
        sentence = _named_item(hydra, command, overrides)
    else:
        sentence = _misspelt(hydra, command, groups, [o for o in overrides if o not in groups])
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    whole = " ".join(" ".join(str(part).split()) for part in (message, cause or "") if str(part).strip())
    return sentence or whole or type(error).__name__


def explain_value(hydra: Hydra, command: Command, overrides: Sequence[Override], error: Exception) -> str:
    """One sentence for a value that cannot be set."""
    return _named_item(hydra, command, overrides) or " ".join(str(error).split())


def _named_item(hydra: Hydra, command: Command, overrides: Sequence[Override]) -> str | None:
    """The sentence for the first override that names an item of a list other than by its number."""
    for override in overrides:
        above, _, item = override.key_or_group.rpartition(".")
        while above:
            if not re.fullmatch(r"-?\d+", item.split("[")[0]) and _is_list(hydra, command, overrides, above):
                return (
                    f"{override.input_line}: {above} is a list, whose items have numbers; write {above}.0=VALUE, or "
                    f"{above}=[VALUE,VALUE] for the whole list"
                )
            above, _, item = above.rpartition(".")
    return None


def _is_list(hydra: Hydra, command: Command, overrides: Sequence[Override], key: str) -> bool:
    """Whether a key holds a list, as far as the overrides beside those below it say."""
    lines = [str(o.input_line) for o in overrides if not o.key_or_group.startswith(f"{key}.")]
    try:
        cfg = hydra.compose_config(command.config_name, lines, RunMode.MULTIRUN, validate_sweep_overrides=False)
        return OmegaConf.is_list(OmegaConf.select(cfg, key))
    except (HydraException, OmegaConfBaseException, ValueError, TypeError):
        return False


def _misspelt(hydra: Hydra, command: Command, groups: Sequence[Override], values: Sequence[Override]) -> str | None:
    """The sentence for the first ``key=value`` whose key the chosen groups do not have."""
    lines = [str(override.input_line) for override in groups]
    try:
        cfg = hydra.compose_config(command.config_name, lines, RunMode.MULTIRUN, validate_sweep_overrides=False)
    except (HydraException, OmegaConfBaseException):
        return None
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    for override in values:
        if not override.is_add() and not override.is_force_add():
            sentence = unknown_key(tree, override.key_or_group, command, str(override.input_line))
            if sentence is not None:
                return sentence
    return None


def unknown_key(tree: dict[Any, Any], key: str, command: Command, line: str = "KEY=VALUE") -> str | None:
    """The sentence for a key that a configuration does not have; None if it cannot be told.

    Args:
        tree: the configuration, as plain values.
        key: with dots, perhaps with numbers in brackets.
        command: whose configuration it is.
        line: the override that names the key.
    """
    node: Any = tree
    parts = re.split(r"[.\[\]]+", key.strip("]"))
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth])
        if isinstance(node, list) or "${" in str(node if isinstance(node, str) else ""):
            return None
        if not isinstance(node, dict):
            return f"{where} is a single value, so there is no {key}"
        if part in node:
            node = node[part]
            continue
        prefix = f"{where}." if where else ""
        valid = [str(name) for name in node if not str(name).startswith("_")]
        if not where:
            return _unknown_top(tree, part, key, command)
        if not node:  # such as callbacks: what is in it has names of its user's choice
            return f"{where} has no {part} so far; to add it write +{line}"
        if "_target_" not in node:
            hint = config.suggestion(part, valid, prefix=prefix)
            return f"{prefix}{part} is not a key of {where}; {hint}"
        label = str(node["_target_"]).rsplit(".", 1)[-1]
        try:
            options = config.options_of(config.locate(str(node["_target_"])))
        except InputError:
            options = {}
        if options is None or part in options:
            add = f"write +{line}"
            return f"{prefix}{part} is an option of {label} that this configuration leaves out; {add}"
        hint = config.suggestion(part, [*valid, *options], prefix=prefix)
        return f"{prefix}{part} is not an option of {label}; {hint}"
    return None


def _unknown_top(tree: dict[Any, Any], part: str, key: str, command: Command) -> str:
    """A key that is unknown at the top: it may be known further down (``tau`` for ``bias.tau``)."""
    inside = [path for path in _leaves(tree) if path.rsplit(".", 1)[-1] == part]
    base = config.base_keys(command.config_name).keys() - {"hydra"}
    if inside and key == part:
        hint = f"did you mean {' or '.join(inside[:2])}? (valid: {', '.join(sorted(base))})"
    else:
        hint = config.suggestion(part, base)
    return f"{key} is not a key of `ubmd {command.name}`; {hint}"


def _leaves(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    children = [(str(k), v) for k, v in node.items() if k != "hydra" or prefix]
    return [path for k, v in children for path in _leaves(v, f"{prefix}.{k}" if prefix else k)]
