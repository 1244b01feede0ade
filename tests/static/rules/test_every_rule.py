"""Every rule is listed once, documented, and has a fixture that fires it and a nearly wrong one that does not."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import pytest

from gqacheck.report.explain import HEADINGS
from gqacheck.rules import RULES

STATIC_CODES = (
    *(f"GQA{n:03}" for n in range(10, 16)),
    *(f"GQA{n}" for n in (*range(101, 112), *range(201, 208), *range(301, 306), *range(401, 415))),
)
VALUE_CODES = ("GQA504",)
PAIRING_CODES = tuple(f"GQA{n}" for n in range(601, 609))
RUNTIME_CODES = (*(f"GQA{n}" for n in range(701, 710)), "GQA712")


def fixtures(table: str) -> dict[str, int]:
    """Code -> number of cases in the ``table`` of all rule test modules beside this one."""
    counts: dict[str, int] = {}
    for path in sorted(Path(__file__).parent.glob("test_*_rules.py")):
        found: Mapping[str, list[object]] = getattr(import_module(path.stem), table, {})
        for code, cases in found.items():
            counts[code] = counts.get(code, 0) + len(cases)
    return counts


def test_rules_are_those_of_the_contract_in_order_of_code():
    assert tuple(rule.code for rule in RULES) == STATIC_CODES + VALUE_CODES + PAIRING_CODES + RUNTIME_CODES


def test_rule_slugs_are_unique():
    assert len({rule.slug for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("table", ["FIRES", "NEARLY"])
def test_every_rule_has_a_fixture(table):
    counts = fixtures(table)
    assert [rule.code for rule in RULES if not counts.get(rule.code)] == []
    assert set(counts) <= {rule.code for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_rule_page_has_every_heading_once_in_order(rule):
    lines = [line.strip() for line in rule.doc.splitlines()]
    assert [line for line in lines if line in HEADINGS] == list(HEADINGS)
