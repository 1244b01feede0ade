"""``python -m docs.generate``: writes the generated parts of the READMEs and the rule pages; ``--check`` only compares.

A generated part stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``. Times in it are those of the run that
wrote it; comparing leaves them out.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from gqacheck.cli import main as gqacheck
from gqacheck.report.explain import HEADINGS, summary
from gqacheck.rules import RULES
from gqacheck.rules.rule import Rule

ROOT = Path(__file__).resolve().parent.parent
TIMES = re.compile(r"\b\d+(\.\d+)? (s|ms)\b")


def demo_output() -> str:
    """What ``gqacheck demo`` prints, in an empty folder."""
    return _fenced("$ gqacheck demo\n" + _run("demo"))


def rule_table() -> str:
    """Every rule with its default severity and its page."""
    rows = [
        f"| [{rule.code}](docs/rules/{rule.code}.md) | {rule.slug} | {rule.severity} | {_cell(summary(rule))} |"
        for rule in RULES
    ]
    return "\n".join(["| code | slug | severity | fires when |", "|---|---|---|---|", *rows]) + "\n"


def help_output() -> str:
    """What ``gqacheck --help`` prints."""
    return _fenced(_run("--help"))


PARTS: Mapping[str, Callable[[], str]] = {"demo": demo_output, "rules": rule_table, "help": help_output}


def _run(*argv: str) -> str:
    out, here = io.StringIO(), os.getcwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            code = gqacheck(list(argv), out, sys.stderr)
        finally:
            os.chdir(here)
    if code:
        raise RuntimeError(f"gqacheck {' '.join(argv)} returned {code}")
    return out.getvalue()


def _fenced(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def rule_page(rule: Rule) -> str:
    """The docstring of a rule as Markdown."""
    lines = [f"# {rule.code} {rule.slug}", "", f"Default severity: {rule.severity}. Claim: {rule.claim}.", ""]
    for text in rule.doc.splitlines():
        bare = text.strip()
        lines.append(f"\n## {bare}\n" if bare in HEADINGS else text[4:] if text.startswith("    ") else text)
    page = "\n".join(lines)
    return re.sub(r"\n{3,}", "\n\n", page).replace("``", "`").rstrip() + "\n"


def files() -> dict[Path, str]:
    """Every generated file, or file with generated parts, with the text it should have."""
    wanted = {ROOT / "docs" / "rules" / f"{rule.code}.md": rule_page(rule) for rule in RULES}
    made: dict[str, str] = {}
    for name in ("README.md", "README.zh-CN.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for part, make in PARTS.items():
            begin, end = f"<!-- begin {part} -->\n", f"<!-- end {part} -->"
            if begin not in text:
                continue
            made.setdefault(part, make())
            before, _, rest = text.partition(begin)
            text = before + begin + made[part] + end + rest.partition(end)[2]
        wanted[ROOT / name] = text
    return wanted


def drift() -> list[Path]:
    """The files that do not say what the code says today; times do not count."""
    return [
        path
        for path, text in files().items()
        if not path.exists() or TIMES.sub("", path.read_text(encoding="utf-8")) != TIMES.sub("", text)
    ]


def main() -> int:
    """Write what drifted, or with ``--check`` name it; 1 when something had drifted under ``--check``."""
    stale, wanted = drift(), files()
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} has drifted; run: make docs")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
