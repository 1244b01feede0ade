"""What a rule is, what it yields, and how the runner turns that into findings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from gqacheck.checkpoint import Container
from gqacheck.geometry.facts import Subject


class Severity(StrEnum):
    """How bad a finding is. Ordered by ``rank``."""

    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """0 note, 1 warning, 2 error."""
        return ("note", "warning", "error").index(self.value)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its unit: ``Quantity(31, "query heads")``."""

    value: int | float | str
    unit: str


@dataclass(frozen=True, slots=True)
class Violation:
    """What a rule yields: one fault in one place. The runner stamps code, slug and default severity on it.

    message: one lower-case sentence with both numbers and the source of each, *without* the layer (the runner
    merges equal messages of several layers). consequence: the error text or the silent effect in the user's
    stack. fix: what to do, imperative. cause: what did it, where the pattern is known.
    """

    message: str
    layer: int | None = None
    tensors: tuple[str, ...] = ()
    expected: Quantity | None = None
    actual: Quantity | None = None
    source: str = ""
    consequence: str = ""
    fix: str = ""
    severity: Severity | None = None
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault as reported: equal violations of several layers are one finding."""

    code: str
    slug: str
    severity: Severity
    message: str
    layers: tuple[int, ...] = ()
    tensors: tuple[str, ...] = ()
    expected: Quantity | None = None
    actual: Quantity | None = None
    source: str = ""
    consequence: str = ""
    fix: str = ""
    cause: str = ""

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name this finding across runs and machines: code, layers, message.

        Of what running a model showed (GQA7), numbers and quoted texts do not count: they differ between machines.
        """
        message = (
            re.sub(r'"[^"]*"|\d[\d,.]*(?:e[+-]?\d+)?', "#", self.message) if self.code[:4] == "GQA7" else self.message
        )
        text = "\x1f".join((self.code, ",".join(map(str, self.layers)), message))
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A rule that did not run. ``needs`` is a word (``base``, ``config``, ``ppl``, ``dense-weights``)."""

    code: str
    needs: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: stable code and slug, default severity, the claim it belongs to, and its pure check function.

    The docstring of ``check`` is the rule's documentation page (headings *What it checks / Why it matters /
    What you would see / Fix / Known misses / Source*). ``skip`` returns why the rule cannot run on a subject, as
    (needs, reason), or None when it can.
    """

    code: str
    slug: str
    severity: Severity
    claim: str
    check: Callable[[Subject], Iterator[Violation]]
    skip: Callable[[Subject], tuple[str, str] | None] = field(default=lambda subject: None)

    @property
    def doc(self) -> str:
        """The documentation page, as written in the docstring."""
        import inspect

        return inspect.getdoc(self.check) or ""


def by_container(subject: Subject, *, folder: Severity, module: Severity) -> Severity:
    """``module`` for a whole-module pickle (it runs from its modules), ``folder`` for everything else."""
    return module if subject.container is Container.MODULE else folder
