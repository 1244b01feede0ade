"""A baseline: the findings that a repository knows of and lives with, so that a gate fails on new ones only.

It is a JSON file that lies beside the settings. A finding is known by its fingerprint (code, layers and message; of
what running a model showed, the message without its numbers), under its checkpoint's path from the baseline's folder.
A link to a checkpoint, and a folder and the only weight file in it, are one checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gqacheck.errors import GqacheckError, ReadError, UsageError
from gqacheck.place import write_beside
from gqacheck.result import Report
from gqacheck.rules.heads import counted
from gqacheck.rules.rule import Severity
from gqacheck.text import printable

SCHEMA = "gqacheck-baseline/1"
LARGEST = 16 << 20
"""Bytes: a longer one is a mistake."""


@dataclass(frozen=True, slots=True)
class Known:
    """One known finding, as it is written down: the fingerprint counts, the rest is for who reads the file."""

    fingerprint: str
    code: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The known findings of each checkpoint, by its path from the folder of ``file``."""

    file: str
    checkpoints: Mapping[str, tuple[Known, ...]] = field(default_factory=dict)

    def of(self, path: str) -> frozenset[str]:
        """Fingerprints that are known of a checkpoint."""
        return frozenset(known.fingerprint for known in self.checkpoints.get(self._key(path), ()))

    def told(self, report: Report, *, whole: bool = False) -> Report:
        """The report with a note on every entry that was not found any more, of checkpoints that were checked.

        whole: all checkpoints of the repository were; then those are stale too that are not on the disk any more.
        """
        stale = [f"{printable(key, 80)} is gone" for key in (self._gone() if whole else ())]
        for checkpoint in report.checkpoints:
            if checkpoint.checkpoint is None:
                continue
            skipped = {skip.code for skip in checkpoint.skipped}
            found = {finding.fingerprint for finding in checkpoint.findings}
            for known in self.checkpoints.get(self._key(checkpoint.path), ()):
                if known.fingerprint not in found and known.code not in skipped:
                    stale.append(f"{printable(checkpoint.path, 80)}: {known.code} {printable(known.message, 120)}")
        if not stale:
            return report
        shown = "; ".join(stale[:3]) + (f"; and {len(stale) - 3} more" if len(stale) > 3 else "")
        entries = "stale entry" if len(stale) == 1 else "stale entries"
        note = f"{len(stale)} {entries} in {self.file} (--update-baseline drops them): {shown}"
        return replace(report, notes=(*report.notes, note))

    def update(self, report: Report, *, whole: bool = False) -> str:
        """Writes the report's errors and warnings as the known ones, and returns the sentence on it.

        What was not checked this time keeps its entries, but for what is gone where the ``whole`` repository was
        checked. Raises GqacheckError when the file cannot be written.
        """
        gone = self._gone() if whole else ()
        made = {key: list(known) for key, known in self.checkpoints.items() if key not in gone}
        written: set[str] = set()
        for checkpoint in report.checkpoints:
            if checkpoint.checkpoint is None:
                continue
            skipped = {skip.code for skip in checkpoint.skipped}
            key = self._key(checkpoint.path)
            kept = [known for known in self.checkpoints.get(key, ()) if known.code in skipped]
            if key in written:  # the same checkpoint under another path
                kept += made[key]
            written.add(key)
            found = [
                Known(finding.fingerprint, finding.code, finding.message)
                for finding in checkpoint.findings
                if finding.severity is not Severity.NOTE
            ]
            made[key] = list({known.fingerprint: known for known in (*kept, *found)}.values())
        data = {
            "schema": SCHEMA,
            "checkpoints": {
                key: [
                    {"fingerprint": known.fingerprint, "code": known.code, "message": printable(known.message, 400)}
                    for known in sorted(made[key], key=lambda known: (known.code, known.fingerprint))
                ]
                for key in sorted(made)
                if made[key]
            },
        }
        try:
            write_beside(os.path.realpath(self.file), json.dumps(data, indent=1) + "\n")
        except OSError as error:
            raise GqacheckError(f"--baseline: {self.file} could not be written: {error.strerror or error}") from error
        n = sum(len(known) for known in made.values())
        return f"{self.file} now holds {counted(n, 'known finding')}"

    def _gone(self) -> tuple[str, ...]:
        """The checkpoints that are not on the disk any more."""
        return tuple(key for key in self.checkpoints if not os.path.lexists(os.path.join(self._folder, key)))

    @property
    def _folder(self) -> str:
        return os.path.dirname(os.path.abspath(self.file))

    def _key(self, path: str) -> str:
        """The key of a checkpoint: that of its entry, else its path from the folder of the baseline."""
        direct = _below(os.path.abspath(path), self._folder)
        if direct in self.checkpoints:
            return direct
        entries = {os.path.realpath(os.path.join(self._folder, key)): key for key in self.checkpoints}
        for name in (path, other_name(path) if entries else ""):
            if name and (key := entries.get(os.path.realpath(name))) is not None:
                return key
        if direct.startswith("../"):  # one of both may have been reached through a link
            real = _below(os.path.realpath(path), os.path.realpath(self._folder))
            return direct if real.startswith("../") else real
        return direct


def other_name(path: str) -> str:
    """The folder whose weights ``path`` is, or the file that is the weights of the folder ``path``; "" for neither."""
    from gqacheck.formats.model_files import list_folder
    from gqacheck.formats.weight_sets import find_weight_sets

    is_folder = os.path.isdir(path)
    folder, name = (path, "") if is_folder else os.path.split(path)
    try:
        sets = find_weight_sets(list_folder(folder or "."))
    except ReadError:
        return ""
    if len(sets) != 1 or (name and name != sets[0].name):
        return ""
    return os.path.join(folder, sets[0].name) if is_folder else folder or "."


def _below(path: str, folder: str) -> str:
    return os.path.relpath(path, folder).replace(os.sep, "/")


def read_baseline(path: str, *, may_be_new: bool = False) -> Baseline:
    """The baseline in ``path``; an empty one when it is to be written and is not there yet.

    Raises UsageError when it is missing, or is no baseline: a gate must not run against the wrong file.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(LARGEST + 1)
    except FileNotFoundError as error:
        if may_be_new:
            return Baseline(path)
        raise UsageError(f"--baseline: there is no file {path}; --update-baseline writes one") from error
    except OSError as error:
        raise UsageError(f"--baseline: {path}: {error.strerror or error}") from error
    if len(data) > LARGEST:
        raise UsageError(f"--baseline: {path} is larger than 16 MB, which no baseline is")
    try:
        return Baseline(path, _checkpoints(json.loads(data)))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--baseline: {path} is no baseline of gqacheck: {printable(str(error), 200)}") from error


def _checkpoints(data: Any) -> dict[str, tuple[Known, ...]]:
    """The entries of a parsed file. Raises ValueError for anything that is not as it should be."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("checkpoints"), dict):
        raise ValueError(f"it does not say schema {SCHEMA}")
    found = {}
    for path, entries in data["checkpoints"].items():
        if not isinstance(entries, list):
            raise ValueError(f"the entries of {path} are no list")
        found[path] = tuple(_known(entry, path) for entry in entries)
    return found


def _known(entry: Any, path: str) -> Known:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("fingerprint", "code")):
        raise ValueError(f"an entry of {path} has no fingerprint and code")
    message = entry.get("message", "")
    return Known(entry["fingerprint"], entry["code"], message if isinstance(message, str) else "")
