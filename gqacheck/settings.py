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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gqacheck.errors import UsageError
from gqacheck.flags import FLAGS, Flag, suggestion
from gqacheck.runtime.corpora.asked import rebased

if TYPE_CHECKING:
    from gqacheck.pipeline import Options

LARGEST = 1 << 20
"""Bytes: a longer settings file is a mistake."""


_PLAIN_OPTIONS = (
    "base", "config", "family", "head_dim", "ppl", "tokenizer", "select", "ignore", "require", "device", "dtype",
    "device_map", "batch_size", "seed", "limit", "no_early_stop", "generate", "consistency", "values",
)  # fmt: skip
_GENERAL = ("baseline", "quiet", "color", "format")
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

        Raises UsageError for a pattern that matches nothing: a gate that checks nothing must not pass.
        """
        from glob import glob

        found: dict[str, None] = {}
        for pattern in self.checkpoints:
            matched = sorted(glob(os.path.join(self.folder, pattern), recursive=True))
            if not matched:
                raise UsageError(f"{self.source}: checkpoints: {pattern[:200]!r} matches nothing in {self.folder}")
            found.update(dict.fromkeys(_shortest(path) for path in matched))
        return tuple(found)


def make_options(given: Mapping[str, Any], **more: Any) -> Options:
    """``Options`` of what was given on the command line or in a settings file; ``more`` are fields of ``Options``."""
    from gqacheck.geometry.facts import Expectations
    from gqacheck.pipeline import Options
    from gqacheck.rules.rule import Severity

    if given.get("all_runtime"):
        given = {"ppl": ("smoke",), **given, "generate": True, "consistency": True}
    return Options(
        expect=Expectations(given.get("expect_layers"), given.get("expect_ratio"), given.get("max_ppl_ratio")),
        fail_on=Severity(given.get("fail_on", "error")),
        **{key: given[key] for key in _PLAIN_OPTIONS if key in given},
        **more,
    )


def find_settings(folder: str) -> Settings:
    """The settings nearest to ``folder``, upwards; in one folder gqacheck.toml wins. Raises UsageError for bad ones."""
    folder = os.path.abspath(folder)
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
            converted[flag.key] = _value(flag, value, folder)
        except UsageError as error:
            raise UsageError(f"{path}: {str(error).replace('--', '', 1)}") from error
    return converted


def _matches(path: str, pattern: str, folder: str) -> bool:
    """Whether a checkpoint's path, taken from ``folder``, matches; a folder's own pattern matches what lies in it."""
    from fnmatch import fnmatchcase

    wanted = os.path.normpath(os.path.join(folder, pattern))
    real = os.path.abspath(path)
    return fnmatchcase(real, wanted) or fnmatchcase(real, os.path.join(wanted, "*"))


def _shortest(path: str) -> str:
    """A path as people write it: relative to here when it lies below."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


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
