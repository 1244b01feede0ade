"""One report per checkpoint for a whole pytest run, however many xdist workers ask for it.

The first that asks makes it and leaves it as JSON in a folder of the run; the others wait for the file. What was left
is only ever read as data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from gqacheck.plugin.collect import Wanted

WAIT = 0.05
_made: dict[str, dict[str, Any]] = {}


def checkpoint_data(config: pytest.Config, wanted: Wanted) -> dict[str, Any]:
    """The JSON report on one checkpoint, with ``fails`` on every finding and the number of rules by group."""
    key = _key(wanted)
    if key not in _made:
        folder = _folder(config)
        _made[key] = _make(wanted) if folder is None else _shared(folder / f"{key}.json", wanted)
    return _made[key]


def _shared(path: Path, wanted: Wanted) -> dict[str, Any]:
    lock = path.with_suffix(".lock")
    while not path.exists():
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            _wait_or_take_over(lock)
            continue
        with open(descriptor, "w", encoding="ascii") as stream:
            stream.write(str(os.getpid()))
        try:
            data = _make(wanted)
            half = path.with_suffix(f".{os.getpid()}")
            half.write_text(json.dumps(data), encoding="utf-8")
            os.replace(half, path)
            return data
        finally:
            with contextlib.suppress(OSError):
                os.unlink(lock)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _wait_or_take_over(lock: Path) -> None:
    """Waits a moment for the worker that holds ``lock``; takes it away from one that died."""
    time.sleep(WAIT)
    with contextlib.suppress(OSError, ValueError):
        holder = int(lock.read_text(encoding="ascii"))
        try:
            os.kill(holder, 0)
        except ProcessLookupError:
            os.unlink(lock)


def _make(wanted: Wanted) -> dict[str, Any]:
    from gqacheck.baseline import read_baseline
    from gqacheck.errors import UsageError
    from gqacheck.pipeline import check_path
    from gqacheck.report.json import checkpoint_json
    from gqacheck.result import CheckpointReport, Verdict
    from gqacheck.rules import RULES
    from gqacheck.options import make_options

    known: frozenset[str] = frozenset()
    try:
        if wanted.baseline:
            known = read_baseline(wanted.baseline).of(wanted.path)
        options = make_options(wanted.given, known=known)
        report = check_path(wanted.path, options)
        line = options.fail_on.rank
    except UsageError as error:
        report, line = CheckpointReport(wanted.path, Verdict.ERROR, 3, error=str(error)), 2
    data = checkpoint_json(report)
    for finding, found in zip(data["findings"], report.findings, strict=True):
        finding["fails"] = found.severity.rank >= line
    counts: dict[str, int] = {}
    for rule in RULES:
        counts[rule.code[:4]] = counts.get(rule.code[:4], 0) + 1
    return {**data, "rules": counts}


def _folder(config: pytest.Config) -> Path | None:
    """The private folder that all workers of this run share, and that pytest clears away; None without xdist."""
    if getattr(config, "workerinput", None) is None:
        return None
    factory = getattr(config, "_tmp_path_factory", None)
    if factory is None:  # -p no:tmpdir
        return None
    folder: Path = factory.getbasetemp().parent / "gqacheck"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _key(wanted: Wanted) -> str:
    text = repr((wanted.path, sorted(wanted.given.items()), wanted.baseline))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]
