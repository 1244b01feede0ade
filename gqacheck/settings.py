"""Settings from ``gqacheck.toml`` or ``[tool.gqacheck]`` of a pyproject.toml: the command line's options by name.

Beside the options: ``checkpoints``, a list of paths or globs that are checked when none is named, and ``paths``, a list
of tables with a glob under ``match`` and the options that hold for the checkpoints it matches (the last one wins)::

    [tool.gqacheck]
    checkpoints = ["exports/*"]
    require = ["shapes", "pairing"]
    [[tool.gqacheck.paths]]
    match = "exports/qwen*"
    base = "parents/qwen"
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gqacheck.errors import UsageError
from gqacheck.flags import FLAGS, Flag, suggestion
from gqacheck.options import read_value
from gqacheck.runtime.corpora.asked import rebased

LARGEST = 1 << 20
"""Bytes: a longer settings file is a mistake."""
_GENERAL = ("baseline", "quiet", "verbose", "color", "format")
"""Settings of a whole run, which cannot differ between checkpoints."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a settings file says, as ``gqacheck.arguments`` would have read it; ``source`` is "" when there is none.

    checkpoints: the patterns as written, meant from ``folder``. paths: patterns with the options that hold there.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    folder: str = ""
    checkpoints: tuple[str, ...] = ()
    paths: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    def of(self, path: str) -> dict[str, Any]:
        """The options for one checkpoint: the general ones, then those of every pattern that it matches."""
        found = dict(self.values)
        for pattern, values in self.paths:
            if _matches(path, pattern, self.folder):
                found.update(values)
        return found

    def expand(self) -> tuple[str, ...]:
        """The checkpoints that the patterns name, sorted, each once.

        They are absolute paths. Raises UsageError for a pattern that matches nothing: a gate that checks nothing must
        not pass.
        """
        from glob import glob

        found: set[str] = set()
        for pattern in self.checkpoints:
            matched = glob(pattern, root_dir=self.folder, recursive=True)
            if not matched:
                raise UsageError(f"{self.source}: checkpoints: {pattern[:200]!r} matches nothing in {self.folder}")
            found.update(_tidied(os.path.join(self.folder, path)) for path in matched)
        return tuple(sorted(found))

    def unmatched(self) -> tuple[str, ...]:
        """The patterns of ``paths`` that nothing on the disk begins like: they hold for no checkpoint."""
        from glob import escape, glob

        starts = {pattern: re.split(r"[*?[]", pattern, maxsplit=1)[0] for pattern, _ in self.paths}
        return tuple(
            pattern for pattern, start in starts.items() if not glob(escape(start) + "*", root_dir=self.folder)
        )


def find_settings(folder: str = ".") -> Settings:
    """The settings nearest to ``folder``, upwards; in one folder gqacheck.toml wins. Raises UsageError for bad ones."""
    try:
        folder = os.path.abspath(folder)
    except FileNotFoundError:  # the current folder is gone
        return Settings()
    while True:
        for name, table in (("gqacheck.toml", ()), ("pyproject.toml", ("tool", "gqacheck"))):
            path = os.path.join(folder, name)
            values = _read(path, table)
            if values is not None:
                return _settings(values, path, folder)
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


def _settings(values: Mapping[str, Any], path: str, folder: str) -> Settings:
    general = {key: value for key, value in values.items() if key not in ("checkpoints", "paths")}
    checkpoints, tables = values.get("checkpoints", []), values.get("paths", [])
    if not isinstance(checkpoints, list) or not all(isinstance(one, str) and one for one in checkpoints):
        raise UsageError(f'{path}: checkpoints is a list of paths or globs, such as ["exports/*"]')
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f'{path}: paths is a list of tables, each with match = "GLOB"')
    paths = []
    for table in tables:
        pattern = table.get("match")
        if not isinstance(pattern, str) or not pattern:
            raise UsageError(f'{path}: a table of paths has no match = "GLOB"')
        rest = {key: value for key, value in table.items() if key != "match"}
        wrong = next((key for key in rest if key.replace("-", "_") in _GENERAL), "")
        if wrong:
            raise UsageError(f"{path}: {wrong} holds for the whole run and cannot stand under paths")
        paths.append((pattern, _convert(rest, path, folder, ("match",))))
    converted = _convert(general, path, folder, ("checkpoints", "paths"))
    return Settings(converted, path, folder, tuple(checkpoints), tuple(paths))


def _convert(values: Mapping[str, Any], path: str, folder: str, also: tuple[str, ...]) -> dict[str, Any]:
    allowed = {flag.name[2:]: flag for flag in FLAGS.values() if flag.setting}
    converted: dict[str, Any] = {}
    for key, value in values.items():
        flag = allowed.get(key)
        if flag is None:
            raise UsageError(f"{path}: there is no setting {key[:60]!r}{suggestion(key, [*allowed, *also])}")
        try:
            converted[flag.key] = read_value(flag, _rebased(flag, value, folder), key)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
    return converted


def _matches(path: str, pattern: str, folder: str) -> bool:
    """Whether a checkpoint's path, taken from ``folder``, matches; a folder's own pattern matches what lies in it."""
    from fnmatch import fnmatchcase

    names = {os.path.abspath(path), os.path.realpath(path)}
    if not os.path.isabs(pattern):
        names = {os.path.relpath(name, start) for name in names for start in (folder, os.path.realpath(folder))}
    wanted = os.path.normpath(pattern)
    return any(fnmatchcase(name, wanted) or fnmatchcase(name, os.path.join(wanted, "*")) for name in names)


def shortest(path: str) -> str:
    """An absolute path as people write it: from here when it lies below."""
    return path.removeprefix(os.path.join(os.getcwd(), ""))


def _tidied(path: str) -> str:
    """A path without ``.`` and ``..``, where that does not lead elsewhere (behind a link, .. is not what it looks)."""
    plain = os.path.normpath(path)
    return plain if os.path.exists(plain) and os.path.samefile(plain, path) else path


def _rebased(flag: Flag, value: Any, folder: str) -> Any:
    """A value with the paths in it meant from ``folder``."""
    if isinstance(value, list):
        return [_rebased(flag, item, folder) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if flag.key == "ppl":
        return rebased(value, folder)
    if not flag.path:
        return value
    joined = os.path.join(folder, value)
    elsewhere = flag.key in ("base", "tokenizer")  # these may be auto, or a name in the hub's cache
    return value if elsewhere and not os.path.exists(joined) else joined
