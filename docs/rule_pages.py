"""The rules as pages: one of each from its docstring, and an index by group."""

from __future__ import annotations

import re

from gqacheck.report.explain import HEADINGS, summary
from gqacheck.rules import RULES
from gqacheck.rules.rule import Rule

GROUPS = {
    "GQA0": "The file",
    "GQA1": "Attention",
    "GQA2": "Module attributes",
    "GQA3": "MLP",
    "GQA4": "Config and model",
    "GQA5": "Values, without a parent",
    "GQA6": "Lineage, beside the parent",
    "GQA7": "Running it",
}
"""What the first digit of a code stands for."""


def rule_pages() -> dict[str, str]:
    """The text of each page by its name below docs/."""
    return {"rules/index.md": rule_index(), **{f"rules/{rule.code}.md": rule_page(rule) for rule in RULES}}


def rule_page(rule: Rule) -> str:
    """The docstring of a rule as Markdown."""
    lines = [f"# {rule.code} {rule.slug}", "", f"Default severity: {rule.severity}. Claim: {rule.claim}.", ""]
    for text in rule.doc.splitlines():
        bare = text.strip()
        lines.append(f"\n## {bare}\n" if bare in HEADINGS else text[4:] if text.startswith("    ") else text)
    page = "\n".join(lines)
    return re.sub(r"\n{3,}", "\n\n", page).replace("``", "`").rstrip() + "\n"


def rule_index() -> str:
    """All rules by group, each with its page."""
    parts = [
        "# Rules",
        "A code and its name are for ever: a code is never used again for anything else. Errors and warnings can be "
        "taken out with `--ignore` or known in a baseline, by code, by name, or by the beginning of a code (`GQA6`). "
        "`gqacheck explain CODE` prints the same pages.",
    ]
    for prefix, title in GROUPS.items():
        parts += [f"## {title} ({prefix}xx)", rule_table([rule for rule in RULES if rule.code.startswith(prefix)], "")]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def rule_table(rules: tuple[Rule, ...] | list[Rule] = RULES, folder: str = "docs/rules/") -> str:
    """Every rule with its default severity and its page."""
    rows = [
        f"| [{rule.code}]({folder}{rule.code}.md) | {rule.slug} | {rule.severity} | {cell(summary(rule))} |"
        for rule in rules
    ]
    return "\n".join(["| code | slug | severity | fires when |", "|---|---|---|---|", *rows]) + "\n"


def cell(text: str) -> str:
    """A text that may stand in a table."""
    return text.replace("|", "\\|")
