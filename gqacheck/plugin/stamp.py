"""What is made once in a session for the same files: a file that was written anew since is another one."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
_MADE: pytest.StashKey[dict[Hashable, tuple[Any, Any]]] = pytest.StashKey()
_PATHS = ("base", "config", "tokenizer", "baseline")
"""Options that name files; corpora do too."""
MOST_FILES = 4096
"""Of one folder, its own before those of the folders in it."""


def once(config: pytest.Config, key: Hashable, stamp: Hashable, make: Callable[[], T]) -> T:
    """What ``make`` returns, made once per session for ``key`` until ``stamp`` changes; only the newest is kept."""
    made = config.stash.setdefault(_MADE, {})
    if key not in made or made[key][0] != stamp:
        made.pop(key, None)  # a model makes room for the next one
        made[key] = stamp, make()
    found: T = made[key][1]
    return found


def stamp_of(path: str | os.PathLike[str], options: Mapping[str, Any]) -> tuple[Hashable, ...]:
    """When the files of a checkpoint, and all that its options name, were last written."""
    named = [os.fspath(path), *(os.fspath(options[key]) for key in _PATHS if _is_path(options.get(key)))]
    corpora = options.get("ppl") or ()
    named += [one for one in ((corpora,) if isinstance(corpora, str) else corpora) if isinstance(one, str)]
    return tuple(tuple(_stamps(one)) for one in named)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _stamps(path: str) -> Iterator[Hashable]:
    from gqacheck.runtime.corpora.asked import split_asked

    target = path if os.path.lexists(path) else split_asked(path).target
    yield _one(target)
    left = MOST_FILES
    for folder, folders, files in os.walk(target):
        folders.sort()
        for name in sorted(files)[:left]:
            yield name, _one(os.path.join(folder, name))
        left -= len(files)
        if left <= 0:
            return


def _one(path: str) -> Hashable:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return os.path.realpath(path), status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
