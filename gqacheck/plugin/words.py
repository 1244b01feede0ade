"""The words that pytest was called with: which of them name tests, and which pytest mistook for one."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from glob import glob
from itertools import pairwise
from pathlib import Path

import pytest

from gqacheck.errors import UsageError

_INI = {
    "pytest.toml": b"",
    ".pytest.toml": b"",
    "pytest.ini": b"",
    ".pytest.ini": b"",
    "pyproject.toml": b"[tool.pytest",
    "tox.ini": b"[pytest]",
    "setup.cfg": b"[tool:pytest]",
}
"""The files that pytest reads its settings from, and what marks them as such."""


def tests_named(config: pytest.Config) -> bool:
    """Whether whoever called pytest named tests.

    The current folder, the rootdir and those of ``testpaths`` mean the whole suite: they name none.
    """
    named = _named(config)
    if not named:
        return False
    here, root = config.invocation_params.dir, config.rootpath
    found = [path for entry in config.getini("testpaths") for path in glob(entry, root_dir=root, recursive=True)]
    whole = {here.resolve(), root.resolve(), *((root / path).resolve() for path in found if (root / path).is_dir())}
    return not any((here / word).resolve() in whole for word in named)


def refuse_moved_root(config: pytest.Config) -> None:
    """Raises UsageError when a path after a space made pytest choose another rootdir than the project's.

    pytest chooses it before it knows the options of plugins, so ``--gqacheck PATH`` reads like a test path to it.
    """
    if config.option.rootdir or config.option.inifilename:
        return
    here = config.invocation_params.dir
    for option, value in _separate_values(config):
        path = here / value
        if path.exists() and _moved(config, path):
            raise UsageError(
                f"{option} {value}: pytest took this for a test path, and {config.rootpath} for the project; "
                f"write {option}={value}"
            )


def _named(config: pytest.Config) -> list[str]:
    """The test paths of the call; those that only stand in ``addopts`` do not count."""
    said = set(_words(config))
    return [word for word in config.option.file_or_dir or () if word in said]


def _words(config: pytest.Config) -> list[str]:
    extra = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
    return extra + [os.fspath(word) for word in config.invocation_params.args]


def _separate_values(config: pytest.Config) -> Iterator[tuple[str, str]]:
    from gqacheck.pytest_plugin import _OPTIONS

    names = {name for name, settings in _OPTIONS if "metavar" in settings}
    return ((word, value) for word, value in pairwise(_words(config)) if word in names and not value.startswith("-"))


def _moved(config: pytest.Config, path: Path) -> bool:
    here, root, ini = config.invocation_params.dir, config.rootpath, config.inipath
    tests = [here / word.partition("::")[0] for word in _named(config)]
    if not any(root == start or root in start.parents for start in tests or [here]):
        return True
    if tests:
        return False
    expected = next(_inis(here), None)
    if expected is not None:
        return ini is None or not os.path.samefile(ini, expected)
    return ini is None and here not in path.parents and not (root / "setup.py").exists()


def _inis(folder: Path) -> Iterator[Path]:
    for one in (folder, *folder.parents):
        for name, mark in _INI.items():
            try:
                if mark in (one / name).read_bytes():
                    yield one / name
            except OSError:
                continue
