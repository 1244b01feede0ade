"""Reports and models of a test session, each made once."""

from __future__ import annotations

import os
from typing import Any

import pytest

_reports: dict[Any, Any] = {}
_models: dict[Any, Any] = {}


def report_of(path: str | os.PathLike[str], **options: Any) -> Any:
    """``gqacheck.check(path, **options)``, made once per session for the same file and options."""
    from gqacheck.api import check

    key = _key(path, options)
    if key not in _reports:
        _reports[key] = check(path, **options)
    return _reports[key]


def model_of(path: str | os.PathLike[str], **options: Any) -> Any:
    """``gqacheck.load_model(path, **options)``, loaded once per session for the same file and options."""
    from gqacheck.runtime.load import load_model

    key = _key(path, options)
    if key not in _models:
        _models[key] = load_model(path, **options)
    return _models[key]


def require_sound(*paths: str | os.PathLike[str], **options: Any) -> None:
    """Returns when every checkpoint is sound; fails the test with the report when not, or when it could not be checked.

    Raises: pytest.fail's exception; pytest.UsageError for options that make no sense.
    """
    __tracebackhide__ = True
    from gqacheck.errors import GqacheckError
    from gqacheck.report.text import render_checkpoint

    if not paths:
        raise pytest.UsageError("@pytest.mark.gqacheck needs the path of a checkpoint")
    for path in paths:
        try:
            report = report_of(path, **options)
        except GqacheckError as error:
            raise pytest.UsageError(f"@pytest.mark.gqacheck: {error}") from error
        except TypeError as error:
            raise pytest.UsageError(f"@pytest.mark.gqacheck: {error}".replace("check()", "the marker")) from error
        if report.exit_code:
            pytest.fail(f"{os.fspath(path)} is not sound\n\n{render_checkpoint(report)}", pytrace=False)


def _key(path: str | os.PathLike[str], options: dict[str, Any]) -> Any:
    """A file that was written anew since is another one."""
    real = os.path.realpath(path)
    try:
        status = os.stat(real)
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
    except OSError:
        stamp = (0, 0, 0)
    return real, stamp, repr(sorted(options.items()))
