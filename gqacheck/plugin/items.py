"""The test items: each reads its part of one report, which is made once for all workers of a run."""

from __future__ import annotations

from typing import Any

import pytest

from gqacheck.plugin.collect import Wanted
from gqacheck.plugin.shared import checkpoint_data
from gqacheck.text import printable

CLAIMS = {"GQA5": "pairing", "GQA6": "pairing", "GQA7": "runtime"}
"""The claim that a group of rules stands behind, where it is not ``shapes``."""
LONGEST = 2000
"""Characters of one sentence; names in it come from the checkpoint and are escaped."""
SHOWN = 20
"""Findings of one item that are printed; the rest is counted."""


class GqacheckFailure(Exception):
    """Findings, or the reason why nothing could be checked; shown without a traceback."""


class GqacheckCollector(pytest.Collector):
    """The parent of all items; it collects nothing by itself."""

    def collect(self) -> list[pytest.Item]:
        """Nothing: ``checkpoint_items`` makes the items."""
        return []


class GqacheckItem(pytest.Item):
    """One group of rules on one range of layers of one checkpoint."""

    def __init__(
        self, *, wanted: Wanted, group: str, first: int | None = None, last: int | None = None, **rest: Any
    ) -> None:
        super().__init__(**rest)
        self.wanted = wanted
        self.group = group
        self.first = first
        self.last = last

    def runtest(self) -> None:
        """Fails with what was found in this part; skips when none of its rules could run."""
        data = checkpoint_data(self.config, self.wanted)
        self._tell_numbers(data)
        if data["geometry"] is None or (self.group == "GQA0" and _could_not(data)):
            raise GqacheckFailure(f"could not check: {printable(data['error'] or '; '.join(data['notes']), LONGEST)}")
        if self.group == "GQA7" and _could_not(data) and data["error"]:
            raise GqacheckFailure(f"could not check: {printable(data['error'], LONGEST)}")
        lines = [_finding_words(finding) for finding in data["findings"] if self._is_mine(finding)]
        if lines:
            more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
            raise GqacheckFailure("\n\n".join([*lines[:SHOWN], *more]))
        self._skip_what_did_not_run(data)

    def _is_mine(self, finding: dict[str, Any]) -> bool:
        if not finding["code"].startswith(self.group) or finding["known"] or not finding["fails"]:
            return False
        if self.first is None or self.last is None:
            return True
        layers = finding["layers"]
        return any(self.first <= index <= self.last for index in layers) or (not layers and self.first == 0)

    def _skip_what_did_not_run(self, data: dict[str, Any]) -> None:
        """Nothing found is only a pass where the claim behind it was checked, and a rule of the group ran."""
        claim = CLAIMS.get(self.group, "shapes")
        if data["claims"][claim] == "not-checked" and self.group != "GQA0":
            pytest.skip(f"not checked: {printable(data['claim_details'][claim]['reason'], LONGEST)}")
        reasons = [skip["reason"] for skip in data["skipped"] if skip["code"].startswith(self.group)]
        if reasons and data["rules"].get(self.group, 0) <= len(reasons):
            pytest.skip(f"not checked: {printable(reasons[0], LONGEST)}")

    def _tell_numbers(self, data: dict[str, Any]) -> None:
        if self.group == "GQA0":
            for name in ("parameters", "file_bytes", "bytes_read", "family"):
                self.user_properties.append((name, data[name]))
            for name, state in data["claims"].items():
                self.user_properties.append((f"claim_{name}", state))
        if self.group == "GQA7":
            for value in data["metrics"]["perplexity"]:
                name = f"perplexity {value['corpus']} {value['protocol_name']}"
                shown = value["value"] if value["value"] is not None else value["value_text"]
                self.user_properties.append((name, shown))
                if value["ratio"] is not None:
                    self.user_properties.append((f"{name} ratio", value["ratio"]))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Our message and not our stack."""
        if isinstance(excinfo.value, GqacheckFailure):
            return f"{excinfo.value}\n\nin {printable(self.wanted.path, LONGEST)}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, int | None, str]:
        """Where the item is said to be: the checkpoint."""
        return self.wanted.path, None, self.name


def _could_not(data: dict[str, Any]) -> bool:
    return bool(data["exit_code"] == 3)


def _finding_words(finding: dict[str, Any]) -> str:
    parts = [
        f"{finding['severity'].upper()} {finding['code']} {finding['slug']}",
        f"  {printable(finding['message'], LONGEST)}",
    ]
    for label, key in (("in", "tensors"), ("cause", "cause"), ("effect", "consequence"), ("fix", "fix")):
        value = finding[key]
        if key == "tensors" and value:
            value = value[0] + (f" and {len(value) - 1} more" if len(value) > 1 else "")
        if value:
            parts.append(f"  {label:7} {printable(value, LONGEST)}")
    return "\n".join(parts)
