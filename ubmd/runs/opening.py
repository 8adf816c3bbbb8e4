"""How a run's folder is begun, or taken up again by a configuration that has to be its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import yaml

from ubmd.errors import InputError
from ubmd.files import write_text
from ubmd.provenance import circumstances
from ubmd.runs.continuation import MAY_EXTEND, MAY_GROW, NOT_CHECKED, config_digest, differences, read_config
from ubmd.runs.integrity import is_json, repair
from ubmd.runs.records import read_record, write_record
from ubmd.runs.store import RoundStore
from ubmd.runs.versions import upgraded
from ubmd.secrecy import hidden

__all__ = ["open_run"]

log = logging.getLogger(__name__)


def open_run(store: RoundStore, config: Mapping[str, Any], *, extensible: bool = False) -> None:
    """Creates the folder, or checks that it belongs to the same configuration and is as it was left.

    What can be made again from other files of the folder is made again.

    Args:
        store: of the folder.
        config: the resolved configuration, which is kept without its secrets. It may differ in what
            :mod:`ubmd.runs.continuation` lists.
        extensible: whether it may differ in :data:`~ubmd.runs.continuation.MAY_EXTEND` too.

    Raises:
        InputError: the folder holds a run with another configuration, or a file that was damaged and cannot be
            made again.
    """
    config = hidden(config)
    store.path.mkdir(parents=True, exist_ok=True)
    if not store.is_begun():
        write_text(store.path / "provenance.json", json.dumps(circumstances(config), indent=2))
        write_record(store.record, {"config": _checksum(config), "files": {}})
        write_text(store.path / "config.yaml", _as_yaml(config))
        return
    grown = _compare(store, config, MAY_EXTEND if extensible else ())
    repair(store)
    _tell_changes(store, config, grown)
    store.tidy(len(store.records()))


def _compare(store: RoundStore, config: Mapping[str, Any], limits: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Raises InputError for another configuration; writes the present one if the file was damaged or has grown.

    Args:
        store: of the folder.
        config: the present one.
        limits: keys in which it may be larger, besides those in which it may differ.

    Returns:
        the limits that have grown, by key: the value before, and now.
    """
    file, known = store.path / "config.yaml", store.config_checksum()
    same = None if known is None else known == _checksum(config)
    _check_limits(store, config)
    try:
        before = read_config(file)
        whole = known is None or known == _checksum(before)
        fault = f"{file} was changed since it was written"
    except InputError as error:
        before, whole, fault = {}, False, str(error)
    if not whole:
        if not same:
            raise InputError(
                f"{fault}, and the configuration given now is not the run's, or it cannot be told; restore the "
                "file or choose another name=..."
            )
        log.warning("%s; written anew, since the configuration given now is the run's", fault)
        write_text(file, _as_yaml(config))
        return {}
    different = differences(upgraded(before), upgraded(config))
    grown = {key: different.pop(key) for key in (*MAY_GROW, *limits) if key in different}
    if different:
        key, (old, new) = next(iter(different.items()))
        raise InputError(
            f"{store.path} holds a run with {key}={old}, now it is {new}; "
            "restore that setting, choose another name=... or remove the folder"
        )
    for key in limits:
        old, new = grown.get(key, (0, 0))
        if new < old:
            raise InputError(f"{key}={new} is below the {old} of {store.path}; give more, or choose another name=...")
    if grown:
        if known is not None and not same:  # first: a kill before the second is put right by the same command
            write_record(store.record, (read_record(store.record) or {}) | {"config": _checksum(config)})
        write_text(file, _as_yaml(config))
    return grown


def _checksum(config: Mapping[str, Any]) -> str:
    return config_digest(config, leave_out=NOT_CHECKED)


def _check_limits(store: RoundStore, config: Mapping[str, Any]) -> None:
    """Refuses limits that the run has passed already."""
    rounds = [record["metrics"] for record in store.records()]
    if not rounds or "learning" not in config:
        return
    n_rounds, limit = len(rounds), config["learning"]["max_rounds"]
    if limit is not None and limit < n_rounds:
        raise InputError(
            f"learning.max_rounds={limit} is below the {n_rounds} rounds that {store.path} has finished; give at "
            f"least {n_rounds}, or choose another name=..."
        )
    acquired = (rounds[-1].get("n_selected") or 0) - (rounds[-1].get("n_rejected") or 0)
    n = rounds[-1].get("n_train", 0) + rounds[-1].get("n_valid", 0) + acquired
    limit = config["learning"]["max_structures"]
    if limit < n:
        raise InputError(
            f"learning.max_structures={limit} is below the {n} structures that {store.path} has labelled; give at "
            f"least {n}, or choose another name=..."
        )


def _tell_changes(store: RoundStore, config: Mapping[str, Any], grown: Mapping[str, tuple[Any, Any]]) -> None:
    """Says with what other limits, versions and machine the run goes on, and adds it to ``provenance.json``."""
    file, now = store.path / "provenance.json", circumstances(config)
    if is_json(file):
        told = json.loads(file.read_text(encoding="utf-8"))
    else:
        log.warning("%s is missing or damaged; written anew with the versions of now", file)
        told = dict(now)
        write_text(file, json.dumps(told, indent=2))
    changes = told.get("changes")
    changes = changes if isinstance(changes, list) else []
    before = changes[-1] if changes else {}
    before = before.get("versions") if isinstance(before, dict) else None
    before = before if isinstance(before, dict) else told
    other = [key for key in now if key != "platform" and key in before and before[key] != now[key]]
    if not grown and not other:
        return
    change = {"time": datetime.now().astimezone().isoformat(timespec="seconds"), "versions": now}
    change["settings"] = {key: {"before": old, "now": new} for key, (old, new) in grown.items()}
    write_text(file, json.dumps(told | {"changes": [*changes, change]}, indent=2))
    for key, (old, new) in grown.items():
        log.info("%s: continues with %s=%s, which was %s", store.path, key, new, old)
    if other:
        text = ", ".join(f"{key} {before[key]} (now {now[key]})" for key in other)
        log.warning("%s was computed with %s; results agree only up to rounding from here on", store.path, text)


def _as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
