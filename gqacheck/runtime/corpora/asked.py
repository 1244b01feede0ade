"""What ``CORPUS[@PROTOCOL]`` asks for, taken apart. Nothing is opened, so the command line can ask here too.

::

    smoke                                      built in
    wikitext2                                  the data set, from the cache or the hub
    wikitext2=FILE   ptb=FILE   c4=FILE        a named corpus from a file, or a folder as save_to_disk writes it
    datasets:ORG/NAME?name=…&split=…&column=…  any data set of the hub, or datasets:FOLDER
    FILE   FILE?column=…&rows=…                text, or .jsonl, .json, .parquet with a column
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from urllib.parse import unquote

from gqacheck.errors import UsageError

SMOKE = "smoke"
NAMED = ("wikitext2", "ptb", "c4")
"""Corpora that have a name of their own, whichever file they come from."""
DATASETS = "datasets:"
_KEYS = {
    DATASETS: ("name", "split", "column", "rows", "revision"),
    "": ("column", "rows"),
    "=": ("column",),
}
_PROTOCOL = re.compile(r"[a-z][a-z0-9._-]*|")
_A_FILE = re.compile(r".*\.(txt|text|md|raw|json|jsonl|ndjson|parquet|gz|py|csv|tsv)")
_REPOSITORY = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?")
_PLAIN = re.compile(r"[\w.-]{1,100}")
_MANY = {"wikitext": "wikitext2", "wikitext-2": "wikitext2", "wikitext-2-raw-v1": "wikitext2", "penn": "ptb"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One corpus and its protocol. known: the name of a corpus everyone knows, "" for any other text.

    source: "" where no file was named, else a path; for a data set its id (``ORG/NAME``) or a folder.
    """

    name: str
    protocol: str = ""
    known: str = ""
    source: str = ""
    is_dataset: bool = False
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int | None:
        """How many rows from the first one on; None for all."""
        return int(self.options["rows"]) if "rows" in self.options else None


@dataclass(frozen=True, slots=True)
class Parts:
    """The same string in pieces, in their order; ``query`` and ``protocol`` without ``?`` and ``@``, None if absent."""

    prefix: str
    target: str
    query: str | None
    protocol: str | None

    @property
    def name(self) -> str:
        """All but the protocol."""
        return f"{self.prefix}{self.target}" + ("" if self.query is None else f"?{self.query}")


def split_asked(asked: str, folder: str = "") -> Parts:
    """The pieces of ``asked``. A file that is there, seen from ``folder``, may have ``@`` or ``?`` in its name."""
    prefix = next((p for p in (DATASETS, *(f"{name}=" for name in (SMOKE, *NAMED))) if asked.startswith(p)), "")
    rest = asked[len(prefix) :]
    if _is_there(folder, rest):
        return Parts(prefix, rest, None, None)
    head, at, tail = rest.rpartition("@")
    protocol = tail if at and _PROTOCOL.fullmatch(tail) and not _A_FILE.fullmatch(tail) else None
    rest = rest if protocol is None else head
    if _is_there(folder, rest):
        return Parts(prefix, rest, None, protocol)
    target, mark, query = rest.partition("?")
    return Parts(prefix, target, query if mark else None, protocol)


def parse_asked(asked: str) -> Asked:
    """What was asked for.

    Raises:
        UsageError: an option that is not known here, given twice or without a value, or a file where none belongs.
    """
    parts = split_asked(asked)
    protocol = parts.protocol or ""
    if parts.protocol == "":
        raise UsageError(f"{asked[:100]!r} ends in @: name a protocol, as in {asked[:40].rstrip('@')}@windows-512")
    if parts.prefix == f"{SMOKE}=":
        raise UsageError("smoke is built in and takes no file: give the path of the file by itself")
    if parts.prefix and not parts.target:
        what = "ORG/NAME" if parts.prefix == DATASETS else "FILE"
        raise UsageError(f"{asked[:100]!r} names no source: --ppl {parts.prefix}{what}")
    if not parts.prefix and parts.target in (SMOKE, *NAMED):
        if parts.query is not None:
            raise UsageError(f"{parts.target} takes no options; they belong to a file: {parts.target}=FILE?column=NAME")
        return Asked(parts.name, protocol, known=parts.target)
    is_dataset = parts.prefix == DATASETS
    if is_dataset and not _REPOSITORY.fullmatch(parts.target) and not os.path.isdir(parts.target):
        raise UsageError(f"{parts.target[:100]!r} is neither the id of a data set (ORG/NAME) nor a folder")
    keys = _KEYS[parts.prefix if is_dataset or not parts.prefix else "="]
    options = {} if parts.query is None else _options(parts.query, keys)
    known = "" if is_dataset else parts.prefix.removesuffix("=")
    return Asked(parts.name, protocol, known, parts.target, is_dataset, options)


def rebased(asked: str, folder: str) -> str:
    """``asked`` with its path seen from ``folder``, where there is such a file; else as it is."""
    parts = split_asked(asked, folder)
    by_name = not parts.prefix and parts.target in (SMOKE, *NAMED)
    if by_name or not _is_there(folder, parts.target):
        return asked
    path = os.path.join(folder, parts.target)
    moved = Parts(parts.prefix, path, parts.query, None).name
    return moved if parts.protocol is None else f"{moved}@{parts.protocol}"


def unknown(asked: Asked) -> UsageError:
    """The error for a word that is neither a corpus nor a path."""
    word = asked.name[:100]
    close = [_MANY.get(word.lower(), "")] if word.lower() in _MANY else []
    close = close or get_close_matches(word.lower(), (SMOKE, *NAMED), n=1, cutoff=0.75)
    hint = f"did you mean {close[0]}? Else use" if close else "use"
    return UsageError(
        f"unknown corpus {word!r}: {hint} smoke, wikitext2, ptb=FILE, c4=FILE, datasets:ORG/NAME, or the path of a "
        "text, jsonl or parquet file"
    )


def _options(query: str, keys: tuple[str, ...]) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in query.split("&"):
        key, _, text = pair.partition("=")
        value = unquote(text)
        if key not in keys:
            close = get_close_matches(key, keys, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(keys)}"
            raise UsageError(f"a corpus has no option {key[:60]!r} here; {hint}")
        if key in options:
            raise UsageError(f"the option {key} of a corpus was given twice")
        if not value:
            raise UsageError(f"the option {key} of a corpus needs a value: ?{key}=…")
        if key == "rows" and not re.fullmatch(r"[1-9][0-9]{0,8}", value):
            raise UsageError(f"rows takes how many rows to read from the first one on, not {value[:60]!r}")
        if key in ("split", "name", "revision") and not _PLAIN.fullmatch(value.replace("/", "")):
            hint = "; to read a part of a split, add rows=N" if "[" in value else ""
            raise UsageError(f"{value[:60]!r} is no {key} of a data set{hint}")
        options[key] = value
    return options


def _is_there(folder: str, path: str) -> bool:
    return bool(path) and "\0" not in path and os.path.lexists(os.path.join(folder, path))
