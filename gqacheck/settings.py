"""Settings from ``gqacheck.toml`` or ``[tool.gqacheck]`` of a pyproject.toml: the command line's options by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gqacheck.errors import UsageError
from gqacheck.flags import FLAGS, Flag, suggestion
from gqacheck.runtime.corpora.asked import rebased

LARGEST = 1 << 20
"""Bytes: a longer settings file is a mistake."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a settings file says, as ``gqacheck.arguments`` would have read it; ``source`` is "" when there is none."""

    values: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


def find_settings(folder: str) -> Settings:
    """The settings nearest to ``folder``, upwards; in one folder gqacheck.toml wins. Raises UsageError for bad ones."""
    folder = os.path.abspath(folder)
    while True:
        for name, table in (("gqacheck.toml", ()), ("pyproject.toml", ("tool", "gqacheck"))):
            path = os.path.join(folder, name)
            values = _read(path, table)
            if values is not None:
                return Settings(_convert(values, path, folder), path)
        parent = os.path.dirname(folder)
        if parent == folder:
            return Settings()
        folder = parent


def _read(path: str, table: tuple[str, ...]) -> Mapping[str, Any] | None:
    """The table of one file; None when there is no such file or no such table in it."""
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        if table:
            return None
        raise UsageError(f"{path}: {error.strerror or error}") from error
    if table and b"gqacheck" not in data:
        return None
    if len(data) > LARGEST:
        raise UsageError(f"{path} is larger than 1 MB, which no settings file is")
    import tomllib

    try:
        values: Any = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    for key in table:
        values = values.get(key) if isinstance(values, dict) else None
        if values is None:
            return None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: [tool.gqacheck] is not a table")
    return values


def _convert(values: Mapping[str, Any], path: str, folder: str) -> dict[str, Any]:
    allowed = {flag.name[2:]: flag for flag in FLAGS.values() if flag.setting}
    converted: dict[str, Any] = {}
    for key, value in values.items():
        flag = allowed.get(key)
        if flag is None:
            raise UsageError(f"{path}: there is no setting {key[:60]!r}{suggestion(key, list(allowed))}")
        try:
            converted[flag.key] = _value(flag, value, folder)
        except UsageError as error:
            raise UsageError(f"{path}: {str(error).replace('--', '', 1)}") from error
    return converted


def _value(flag: Flag, value: Any, folder: str) -> Any:
    if not flag.metavar:
        if not isinstance(value, bool):
            raise UsageError(f"{flag.name} takes true or false, not {value!r}")
        return value
    if flag.repeat:
        if value is True:
            value = ["smoke"]
        items = value if isinstance(value, list) else [value]
        return tuple(_one(flag, item, folder) for item in items)
    if isinstance(value, list) and flag.metavar in ("NAMES", "CODES") and all(isinstance(v, str) for v in value):
        value = ",".join(value)
    return _one(flag, value, folder)


def _one(flag: Flag, value: Any, folder: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, (str, int, float) if flag.metavar == "X" else (str, int)):
        raise UsageError(f"{flag.name} takes {flag.metavar}, not {str(value)[:60]!r}")
    text = str(value)
    if not text:
        raise UsageError(f"{flag.name} takes {flag.metavar}, not nothing")
    if flag.path:
        text = _from_folder(text, folder)
    elif flag.key == "ppl":
        text = rebased(text, folder)
    return flag.convert(flag.name, text)


def _from_folder(text: str, folder: str) -> str:
    """A path in a settings file is meant from there; what is not there (``org/name``) is left as it is."""
    joined = os.path.join(folder, text)
    return joined if os.path.exists(joined) else text
