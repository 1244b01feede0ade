"""The result of a check as plain values; ``gqacheck.report`` renders it, nothing here prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from gqacheck.checkpoint import Checkpoint
from gqacheck.geometry.facts import Geometry
from gqacheck.geometry.origins import Lineage, PairingFit
from gqacheck.geometry.outcomes import RuntimeFacts
from gqacheck.rules.rule import Finding, Skipped


class Verdict(StrEnum):
    """What became of one checkpoint."""

    PASS = "pass"
    FAIL = "fail"
    ERROR = "error"


class ClaimState(StrEnum):
    """The state of one of the three claims. "Could not check" is never "pass"."""

    PASS = "pass"
    FAIL = "fail"
    NOT_CHECKED = "not-checked"
    NOT_APPLICABLE = "not-applicable"


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """One claim (``shapes``, ``pairing``, ``runtime``) with its state, why, and how many rules stood behind it."""

    name: str
    state: ClaimState
    reason: str = ""
    rules_run: int = 0


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """Everything said of one checkpoint. ``error`` is set, and the facts are None, when it could not be checked.

    known: fingerprints of findings that a baseline knows, and that did not fail the check.
    """

    path: str
    verdict: Verdict
    exit_code: int
    checkpoint: Checkpoint | None = None
    geometry: Geometry | None = None
    base: CheckpointReport | None = None
    claims: tuple[ClaimResult, ...] = ()
    findings: tuple[Finding, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    runtime: RuntimeFacts | None = None
    lineage: Lineage | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    pairing_fit: PairingFit | None = None
    known: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """The checkpoints of one invocation; ``exit_code`` is the highest of theirs."""

    checkpoints: tuple[CheckpointReport, ...]
    exit_code: int
    version: str
    notes: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> Verdict:
        """The worst verdict."""
        order = (Verdict.PASS, Verdict.FAIL, Verdict.ERROR)
        return max((c.verdict for c in self.checkpoints), key=order.index, default=Verdict.PASS)
