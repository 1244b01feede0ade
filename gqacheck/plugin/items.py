"""The test items: each reads its part of one report."""

from __future__ import annotations

from typing import Any

import pytest

from gqacheck.plugin.numbers import numbers
from gqacheck.plugin.plan import LONGEST_NAME, Part, Plan
from gqacheck.plugin.shared import checkpoint_data
from gqacheck.plugin.verdict import failure, not_checked
from gqacheck.text import printable


class GqacheckFailure(Exception):
    """Findings, or the reason why nothing could be checked; shown without a traceback."""


class GqacheckCollector(pytest.Collector):
    """The parent of all items; it collects nothing by itself."""

    def collect(self) -> list[pytest.Item]:
        """Nothing: ``GqacheckRun`` makes the items."""
        return []


class GqacheckItem(pytest.Item):
    """One group of rules on one range of layers of one checkpoint. folder: where workers share reports."""

    def __init__(self, *, plan: Plan, part: Part, folder: str = "", **rest: Any) -> None:
        super().__init__(**rest)
        self.plan = plan
        self.part = part
        self.folder = folder
        self.stale: tuple[str, ...] = ()
        self.add_marker("gqacheck")

    @property
    def place(self) -> str:
        """The checkpoint's path, as it may be shown."""
        return printable(self.plan.wanted.path, LONGEST_NAME)

    def runtest(self) -> None:
        """Fails with what was found in this part; skips when that nothing was found proves nothing."""
        data = checkpoint_data(self.config, self.plan.wanted, self.folder)
        found = numbers(self.part, data)
        self.user_properties[:] = [pair for pair in self.user_properties if pair[0] not in found] + list(found.items())
        if self.part.group == "GQA0":
            self.stale = tuple(data["stale"])
        why = failure(self.plan, self.part, data)
        if why:
            raise GqacheckFailure(why)
        why = not_checked(self.plan, self.part, data)
        if why:
            pytest.skip(why)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Our message and not our stack."""
        if isinstance(excinfo.value, GqacheckFailure):
            return f"{excinfo.value}\n\nin {self.place}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, int | None, str]:
        """Where the item is said to be: the checkpoint.

        The headline is no end of the id: pytest would take that end for a dotted name, and write ``::`` for its dots.
        """
        return self.place, None, f"{self.part.name} of {self.plan.name}"
