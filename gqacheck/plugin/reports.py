"""Reports and models for the fixtures and the marker, each made once in a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from gqacheck.errors import GqacheckError
from gqacheck.plugin.stamp import once, stamp_of
from gqacheck.text import printable

T = TypeVar("T")


def report_of(config: pytest.Config, /, path: str | os.PathLike[str], **options: Any) -> Any:
    """``gqacheck.check(path, **options)``, made once per session for the same files and options."""
    __tracebackhide__ = True
    return _once("report", config, path, options, lambda: _check(path, options))


def model_of(config: pytest.Config, /, path: str | os.PathLike[str], **options: Any) -> Any:
    """``gqacheck.load_model(path, **options)``, loaded once per session for the same files and options."""
    __tracebackhide__ = True
    return _once("model", config, path, options, lambda: _load(path, options))


def require_sound(config: pytest.Config, /, *paths: str | os.PathLike[str], **options: Any) -> None:
    """Returns when every checkpoint is sound; fails the test with the report when not, or when it could not be checked.

    Raises: pytest.fail's exception, for options that make no sense too.
    """
    __tracebackhide__ = True
    from gqacheck.report.text import render_checkpoint
    from gqacheck.screen import internal, show_traceback

    marker = "@pytest.mark.gqacheck"
    if not paths and "path" in options:
        paths = (options.pop("path"),)
    if not paths:
        pytest.fail(f"{marker} needs the path of a checkpoint", pytrace=False)
    for path in paths:
        why, shown = "", printable(str(path), 1000)
        try:
            _refuse_unknown(options)
            report = report_of(config, path, **options)
        except (GqacheckError, TypeError) as error:
            why = str(error)
        except Exception as error:  # the boundary: a bug of ours is told in one line
            show_traceback()
            why = internal(error)
        if why:
            pytest.fail(f"{marker}: {shown}: {printable(why, 2000)}", pytrace=False)
        if report.exit_code:
            what = "could not be checked" if report.exit_code == 3 else "is not sound"
            pytest.fail(f"{shown} {what}\n\n{render_checkpoint(report)}", pytrace=False)


def _refuse_unknown(options: dict[str, Any]) -> None:
    """Raises TypeError for a keyword that ``gqacheck.check`` does not take."""
    from inspect import signature

    from gqacheck.api import check

    signature(check).bind("", **options)


def _once(kind: str, config: pytest.Config, path: Any, options: dict[str, Any], make: Callable[[], T]) -> T:
    """Our errors come out without our frames, so that a test's own line is what pytest shows."""
    __tracebackhide__ = True
    key = (kind, os.path.realpath(path), repr(sorted(options.items())))
    try:
        return once(config, key, stamp_of(path, options), make)
    except GqacheckError as error:
        raise error.with_traceback(None) from None


def _check(path: Any, options: dict[str, Any]) -> Any:
    from gqacheck.api import check

    return check(path, **options)


def _load(path: Any, options: dict[str, Any]) -> Any:
    from gqacheck.runtime.load import load_model

    return load_model(path, **options)
