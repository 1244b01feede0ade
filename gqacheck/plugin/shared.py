"""One report per checkpoint for a whole pytest run, however many xdist workers ask for it.

The first that asks makes it and leaves it as JSON in a folder of the run; the others wait for the file. What was left
is only ever read as data. The lock is the system's, which takes it from a worker that dies.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gqacheck.plugin.asked import Wanted
from gqacheck.plugin.stamp import once, stamp_of

if TYPE_CHECKING:
    from gqacheck.result import CheckpointReport


def checkpoint_data(config: pytest.Config, wanted: Wanted, folder: str = "") -> dict[str, Any]:
    """The JSON report on one checkpoint as it is now, shared through ``folder`` when there is one.

    More than in JSON: ``fails`` on every finding, the number of ``rules`` by group, ``undecided``: why the pairs of a
    layer could not all be judged, by its index as text, and ``stale``: sentences on entries of the baseline.
    """
    options = {**wanted.given, "baseline": wanted.baseline}
    stamp = stamp_of(wanted.path, options)
    key = (wanted.path, repr(sorted(options.items())))
    if not folder:
        return once(config, key, stamp, lambda: make_data(wanted))
    name = hashlib.sha256(repr((key, stamp)).encode("utf-8", "backslashreplace")).hexdigest()[:32]
    return once(config, key, stamp, lambda: _shared(Path(folder, f"{name}.json"), wanted))


def _shared(path: Path, wanted: Wanted) -> dict[str, Any]:
    with _locked(path.with_suffix(".lock")):
        if not path.exists():
            data = make_data(wanted)
            half = path.with_suffix(f".{os.getpid()}")
            half.write_text(json.dumps(data), encoding="ascii")
            os.replace(half, path)
            return data
    found: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds ``path`` alone, waiting for as long as another process lives that has it."""
    with open(path, "ab") as stream:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK, 1)  # gives up after ten seconds
                    break
                except OSError:
                    continue
        else:
            import fcntl

            fcntl.lockf(stream, fcntl.LOCK_EX)  # unlike flock, not passed on to children
        yield


def make_data(wanted: Wanted) -> dict[str, Any]:
    """``checkpoint_data`` made anew. Whatever goes wrong is a report that says so."""
    from gqacheck.baseline import read_baseline
    from gqacheck.errors import UsageError
    from gqacheck.options import make_options
    from gqacheck.pipeline import check_path
    from gqacheck.report.json import checkpoint_json
    from gqacheck.result import CheckpointReport, Report, Verdict
    from gqacheck.rules import RULES
    from gqacheck.rules.rule import Severity
    from gqacheck.screen import internal, show_traceback

    rank = Severity.ERROR.rank
    stale: tuple[str, ...] = ()
    try:
        baseline = read_baseline(wanted.baseline) if wanted.baseline else None
        known = baseline.of(wanted.path) if baseline is not None else frozenset()
        options = make_options(wanted.given, known=known)
        rank = options.fail_on.rank
        report = check_path(wanted.path, options)
        if baseline is not None:
            stale = baseline.told(Report((report,), report.exit_code, "")).notes
    except UsageError as error:
        report = CheckpointReport(wanted.path, Verdict.ERROR, 3, error=str(error))
    except Exception as error:  # the boundary: whatever a bug raises must read as "could not check"
        show_traceback()
        report = CheckpointReport(wanted.path, Verdict.ERROR, 3, error=internal(error))
    data = checkpoint_json(report)
    for finding, found in zip(data["findings"], report.findings, strict=True):
        finding["fails"] = found.severity.rank >= rank
    counts: dict[str, int] = {}
    for rule in RULES:
        counts[rule.code[:4]] = counts.get(rule.code[:4], 0) + 1
    return {**data, "rules": counts, "undecided": _undecided(report), "stale": list(stale)}


def _undecided(report: CheckpointReport) -> dict[str, str]:
    """Layers whose weights could not all be told from the parent's, with the reason for each."""
    from gqacheck.claims import undecided_layers
    from gqacheck.geometry.facts import Subject

    if report.checkpoint is None or report.geometry is None or report.lineage is None or not report.lineage.compared:
        return {}
    subject = Subject(report.checkpoint, report.geometry, lineage=report.lineage)
    return {str(index): why for index, why in undecided_layers(subject).items()}
